"""What the processor can do, asked where a kernel is chosen."""
import functools

import torch


@functools.cache
def multiplies_bfloat16(kind):
    """Whether "cpu" or "cuda" has instructions for products of bfloat16; elsewhere they are emulated, many times slower than float32."""
    if kind == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
