"""Linear layers with 8-bit weights for generating on a CPU: torch's own dynamic kernels, and in compiled steps a fused product.

Weights are int8 by row. The dynamic kernels quantise activations as they come, one scale a call; the fused product takes them as they are."""
import copy
import warnings

import torch
from torch import nn

from gencore.check import InputError
from gencore.step_linear import one_compiled_row, row_product


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
            linear = copy.deepcopy(linear).float()                                    # the kernels' biases are float32
            linear.qconfig = per_channel_dynamic_qconfig
            self.packed = Linear.from_float(linear)._packed_params._packed_params
        weight, self.bias = torch.ops.quantized.linear_unpack(self.packed)
        self.register_buffer("weight", weight.int_repr())                             # (O, I) int8, for compiled steps
        self.register_buffer("scales", weight.q_per_channel_scales().float())         # (O,)

    def forward(self, x):
        if not one_compiled_row(x):
            return torch.ops.quantized.linear_dynamic(x.float(), self.packed, True).to(x.dtype)
        y = row_product(x, self.weight) * self.scales
        return y if self.bias is None else y + self.bias


def int8_linears(module):
    """Replaces every nn.Linear inside the module, in place."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child))
        else:
            int8_linears(child)
    return module
