"""A linear layer and its activation in one call of oneDNN, for inference on a CPU.

torch multiplies float32 by MKL, which was a sixth slower than oneDNN on an AMD EPYC, and runs over the result once more for the
activation: a tanh takes half as long as the product in float32, twice as long in bfloat16. Gradients, other devices and compiled graphs (which
fuse by themselves) go the usual way."""
import torch
from torch import nn

from gencore.processor import onednn_dtypes

POST = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", ""), None: ("none", "")}    # activation -> oneDNN's name, form
ROWS = 32                                       # a product of fewer is bound by reading the weights, and torch's own is as fast


def fits(x, linear):
    """Whether `product` may take x (...,I) through this layer; a layer that was replaced, or is watched by hooks, is called as a module."""
    if torch.is_grad_enabled() or type(linear) is not nn.Linear or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if linear._forward_hooks or linear._forward_pre_hooks or x.shape[:-1].numel() < ROWS or x.dtype != linear.weight.dtype and not autocasts():
        return False
    return {x.dtype, linear.weight.dtype, dtype_of(x)} <= onednn_dtypes()


def autocasts():
    return torch.is_autocast_enabled("cpu")


def dtype_of(x):
    """What a product of x is made in."""
    return torch.get_autocast_dtype("cpu") if autocasts() else x.dtype


def product(x, linear, activation=None):
    """x (...,I), nn.Linear, a key of POST -> activation(linear(x)) (...,O)."""
    dtype, (kind, form) = dtype_of(x), POST[activation]
    bias = None if linear.bias is None else linear.bias.to(dtype)
    return torch.ops.mkldnn._linear_pointwise(x.to(dtype), linear.weight.to(dtype), bias, kind, [], form)
