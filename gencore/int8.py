"""Linear layers with 8-bit weights for generating on a CPU: torch's own dynamic kernels, and in compiled steps a fused product.

Weights are int8 by row. Activations are quantised as they come, each position by a scale of its own, so that a row of a batch is what it is alone;
the fused product takes them as they are."""
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
            bare = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
            bare.weight, bare.qconfig = nn.Parameter(linear.weight.detach().float()), per_channel_dynamic_qconfig
            self.packed = Linear.from_float(bare)._packed_params._packed_params
        weight, _ = torch.ops.quantized.linear_unpack(self.packed)
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("weight", weight.int_repr())                             # (O, I) int8, for compiled steps
        self.register_buffer("scales", weight.q_per_channel_scales().float())         # (O,)

    def forward(self, x):
        if one_compiled_row(x):
            y = row_product(x, self.weight) * self.scales
        else:
            rows = x.reshape(-1, x.shape[-1]).float()
            largest = rows.abs().amax(-1, keepdim=True).clamp(min=1e-30)                  # (R, 1)
            ends = torch.tensor([[-1.0], [1.0]]).expand(2, rows.shape[1])                 # the kernel's one scale is that of [-1, 1], whatever comes
            y = torch.ops.quantized.linear_dynamic(torch.cat((rows / largest, ends)), self.packed, True)[:-2] * largest
            y = y.view(*x.shape[:-1], -1)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


def int8_linears(module):
    """Replaces every nn.Linear inside the module, in place."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child))
        else:
            int8_linears(child)
    return module
