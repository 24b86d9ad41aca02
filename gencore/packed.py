"""Steps of a batch on a CPU: linear layers read their weights in oneDNN's own order while a text is made.

A product of a few rows is bound neither by the bytes of the weights nor by arithmetic, but by how they meet. torch multiplies float32 by MKL, which
reads the weights as they lie; laid out in blocks, they are multiplied sooner (`python -m benchmarks.llama_cpp --batch 16`). The copies last as long
as the text."""
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from gencore.processor import onednn_dtypes

FEW = 4                                         # rows; fewer stream the weights, best as they lie


@contextmanager
def packed(module, rows):
    """While open, float32 linear layers of the module (bfloat16 where the processor multiplies it) read copies made for so many rows.

    Products of fewer rows, gradients, other devices and layers that are no nn.Linear go the usual way; outside of it all is as it was."""
    dtypes = onednn_dtypes() if rows >= FEW else set()
    chosen = [child for child in module.modules() if type(child) is nn.Linear and "forward" not in vars(child)
              and child.weight.device.type == "cpu" and child.weight.dtype in dtypes]
    for child in chosen:
        child.forward = partial(product, child, torch.ops.mkldnn._reorder_linear_weight(child.weight.detach(), rows))
    try:
        yield
    finally:
        for child in chosen:
            del child.forward


def product(linear, weight, x):
    """x (...,I), the layer and its weights in oneDNN's order -> linear(x) (...,O)."""
    enough = x.shape[:-1].numel() >= FEW
    if enough and x.dtype == linear.weight.dtype and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        return torch.ops.mkldnn._linear_pointwise(x, weight, linear.bias, "none", [], "")
    return F.linear(x, linear.weight, linear.bias)
