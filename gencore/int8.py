"""Linear layers with 8-bit weights for generating on a CPU: products of whole numbers, and in compiled steps a fused product.

Weights are int8 by row. Activations are quantised as they come, each position by a scale of its own, so that a row of a batch is what it is alone;
the fused product takes them as they are."""
import math
import warnings

import torch
from torch import nn

from gencore.check import InputError
from gencore.processor import multiplies_int8
from gencore.step_linear import one_compiled_row, row_product

LEAST = 1e-30                   # a row of zeros is divided by this


class Int8Linear(nn.Module):
    """x (...,I) -> (...,O), made from an nn.Linear."""

    def __init__(self, linear):
        super().__init__()
        if linear.weight.device.type != "cpu":
            raise InputError(f'quantize="int8" runs on the CPU, the model is on {linear.weight.device}: move it with .to("cpu")')
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(1) / 127).clamp(min=LEAST)
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("weight", (weight / scales[:, None]).round().to(torch.int8).contiguous())                # (O, I)
        self.register_buffer("scales", scales)                                                                        # (O,)
        self.packed = None if multiplies_int8() else packed(self.weight, scales)

    def forward(self, x):
        if one_compiled_row(x):
            y = row_product(x, self.weight) * self.scales
        else:
            rows = x.reshape(-1, x.shape[-1]).float()
            largest = torch.linalg.vector_norm(rows, math.inf, -1, keepdim=True).clamp(min=LEAST)                     # (R, 1)
            y = (self._exact if self.packed is None else self._in_seven_bits)(rows, largest).view(*x.shape[:-1], -1)
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def _exact(self, rows, largest):
        """Products of int8, whose sums are whole numbers."""
        scale = largest / 127
        return (torch._int_mm((rows / scale).round_().to(torch.int8), self.weight.t()) * scale).mul_(self.scales)

    def _in_seven_bits(self, rows, largest):
        """By torch's dynamic kernel, which takes a bit less of the activations so that sums of two products fit where there is no VNNI."""
        ends = torch.tensor([[-1.0], [1.0]]).expand(2, rows.shape[1])                     # the kernel's one scale is that of [-1, 1], whatever comes
        return torch.ops.quantized.linear_dynamic(torch.cat((rows / largest, ends)), self.packed, True)[:-2] * largest


def packed(weight, scales):
    """weight (O,I) int8, scales (O,) -> what torch's dynamic kernel takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                                   # torch.ao is deprecated, its kernels are not
        quantised = torch._make_per_channel_quantized_tensor(weight, scales.double(), torch.zeros(len(scales), dtype=torch.long), 0)
        return torch.ops.quantized.linear_prepack(quantised, None)


def int8_linears(module):
    """Replaces every nn.Linear inside the module, in place."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child))
        else:
            int8_linears(child)
    return module
