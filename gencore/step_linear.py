"""Products of compiled steps, which have one row: fused sums over weights in the fewest bits that hold them exactly.

A step reads every weight once: its time is that of the bytes, and of calls, of which the fused ones are fewer."""
import torch
from torch import nn


def row_product(x, weight):
    """x (...,I) of one row, weight (O,I) of any dtype -> (...,O), multiplied and summed in x's dtype."""
    return (weight.to(x.dtype) * x.reshape(-1).expand(weight.shape)).sum(-1).view(*x.shape[:-1], -1)


def one_compiled_row(x):
    """Whether torch.compile is at work on x (...,I) of one row on a CPU."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and x.shape[:-1].numel() == 1


class StepLinear(nn.Linear):
    """The nn.Linear that it is made of, with a copy of the weights for compiled steps: bfloat16 where that is exact, as it is for weights
    that were saved in it, so that half the bytes give the same sums."""

    def __init__(self, linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        weight = linear.weight.detach()
        short = weight.bfloat16()
        self.register_buffer("short", short.contiguous() if torch.equal(short.to(weight.dtype), weight) else weight.contiguous(), persistent=False)

    def forward(self, x):
        if not one_compiled_row(x):
            return super().forward(x)
        y = row_product(x, self.short)
        return y if self.bias is None else y + self.bias


def step_linears(module):
    """Replaces every nn.Linear with float32 weights on the CPU inside the module, in place; called again, it reads the weights of all anew."""
    for name, child in module.named_children():
        if type(child) is StepLinear or type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype == torch.float32:
            setattr(module, name, StepLinear(child))
        else:
            step_linears(child)
    return module
