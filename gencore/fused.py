"""A linear layer and its activation in one call of oneDNN, for inference on a CPU.

torch multiplies float32 by MKL, which is a sixth slower than oneDNN on processors of other makers, and runs over the result once more for the
activation, whose tanh takes half as long as the product. Gradients, other devices and compiled graphs (which fuse by themselves) go the usual way."""
import torch
from torch import nn

POST = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", ""), None: ("none", "")}    # activation -> oneDNN's name, form
ROWS = 32                                       # a product of fewer is bound by reading the weights, and torch's own is as fast


def fits(x, linear):
    """Whether `product` may take x (...,I) through this layer; a layer that was replaced, or is watched by hooks, is called as a module."""
    if torch.is_grad_enabled() or type(linear) is not nn.Linear or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return (x.dtype == linear.weight.dtype == torch.float32 and x.shape[:-1].numel() >= ROWS and not torch.is_autocast_enabled("cpu")
            and not (linear._forward_hooks or linear._forward_pre_hooks) and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


def product(x, linear, activation=None):
    """x (...,I), nn.Linear, a key of POST -> activation(linear(x)) (...,O)."""
    kind, form = POST[activation]
    return torch.ops.mkldnn._linear_pointwise(x, linear.weight, linear.bias, kind, [], form)
