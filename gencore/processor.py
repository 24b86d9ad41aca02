"""What the processor can do, asked where a kernel is chosen."""
import functools
import time

import torch


@functools.cache
@torch.compiler.assume_constant_result
def multiplies_bfloat16(kind):
    """Whether "cpu" or "cuda" multiplies bfloat16 faster than float32: for CPUs that have instructions for it, two products are timed once."""
    if kind == "cpu":
        return (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()) and seconds(torch.bfloat16) < seconds(torch.float32)
    return kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def onednn_dtypes():
    """What oneDNN is called for on this processor; nothing where torch lacks it or it is switched off."""
    onednn = torch.backends.mkldnn
    if not (onednn.is_available() and onednn.enabled):
        return set()
    return {torch.float32, torch.bfloat16} if multiplies_bfloat16("cpu") else {torch.float32}


def seconds(dtype, size=384, times=5):
    """The fastest of a few products of two matrices of `size` rows."""
    a = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begun)
    return best


@functools.cache
@torch.compiler.assume_constant_result
def multiplies_int8():
    """Whether the CPU has instructions for products of int8 (VNNI), whose sums overflow nowhere."""
    return torch.cpu._is_vnni_supported()
