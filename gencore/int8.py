"""Linear layers with 8-bit weights for generating on a CPU: torch's own dynamic kernels, in eager steps and in compiled ones.

Weights are int8 by row; activations are quantised as they come, one scale a call."""
import itertools
import warnings
import weakref

import torch
from torch import nn

from gencore.check import InputError

_LAYERS = weakref.WeakValueDictionary()       # number -> Int8Linear: torch.compile can't carry packed weights, but it can carry a number
_NUMBERS = itertools.count()


class Int8Linear(nn.Module):
    """x (...,I) -> (...,O), made from an nn.Linear."""

    def __init__(self, linear):
        super().__init__()
        if linear.weight.device.type != "cpu":
            raise InputError(f'quantize="int8" runs on the CPU, the model is on {linear.weight.device}: move it with .to("cpu")')
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                                           # torch.ao is deprecated, its kernels are not
            from torch.ao.nn.quantized.dynamic import Linear
            from torch.ao.quantization import per_channel_dynamic_qconfig
            linear.qconfig = per_channel_dynamic_qconfig
            self.packed = Linear.from_float(linear)
            del linear.qconfig
        self.out_features, self.number = linear.out_features, next(_NUMBERS)
        _LAYERS[self.number] = self

    def forward(self, x):
        if torch.compiler.is_compiling():
            return int8_linear(x, self.number, self.out_features)
        return self.packed(x)


@torch.library.custom_op("commonthread::int8_linear", mutates_args=())
def int8_linear(x: torch.Tensor, number: int, out_features: int) -> torch.Tensor:
    """The layer of that number, as one operation that compilers leave alone."""
    return _LAYERS[number].packed(x)


@int8_linear.register_fake
def _shape(x, number, out_features):
    return x.new_empty(*x.shape[:-1], out_features)


def int8_linears(module):
    """Replaces every nn.Linear inside the module, in place."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child))
        else:
            int8_linears(child)
    return module
