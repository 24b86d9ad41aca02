"""Attention maps: what each head of a Transformer looks at, kept while the model runs as it always does, and drawn (Vaswani et al. 2017).

    with watched(lm.transformer) as seen:               # of MaskedLM: model.encoder.transformer; of Seq2SeqLM: model.encoder, model.decoder
        lm(ids)
    draw_attention(seen.attention, tokens, "attention.png", layer=0)"""
import contextlib
from typing import NamedTuple

import torch

from gencore.attention import attend, attend_eager
from gencore.check import InputError, dims, whole
from gencore.folder import save_figure
from gencore.tiles import Tiles
from gencore.transformer import Transformer

ROOM = 64                  # tokens a side that a heat map has room for
ACROSS = 4                 # heads in a row of the picture


class Seen(NamedTuple):
    """The weights of a transformer's last forward: a tensor for each block, whose rows sum to 1. Empty before the first."""
    attention: list        # (B, N, T, S): of the blocks' self-attention
    cross: list            # (B, N, T, S): of their cross-attention, S places of the memory; empty where there is none


@contextlib.contextmanager
def watched(transformer):
    """While open, keeps what each block of a Transformer looks at -> Seen, of the newest forward; InputError for any other module.

    The blocks run by their usual kernels, so that outputs are what they were; the weights are computed beside them from the same queries, keys and
    mask, step by step (Vaswani et al. 2017, equation 1). With a cache, S counts the slots it gives. Compiled steps are not seen."""
    if not isinstance(transformer, Transformer):
        raise InputError(f"expected a gencore.transformer.Transformer, such as the field `transformer` of a CausalLM, `encoder.transformer` of a "
                         f"MaskedLM, `encoder` or `decoder` of a Seq2SeqLM, got {type(transformer).__name__}")
    seen = Seen([], [])

    def begin(module, given):
        for kept in () if torch.compiler.is_compiling() else seen:
            kept.clear()

    hooks = [transformer.register_forward_pre_hook(begin)]
    for block in transformer.blocks:
        hooks.append(block.attention.register_forward_hook(_keeping(seen.attention), with_kwargs=True))
        if block.cross is not None:
            hooks.append(block.cross.register_forward_hook(_keeping(seen.cross), with_kwargs=True))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _keeping(kept):
    """A hook that adds to `kept` the weights of an Attention(x, seen) or a CrossAttention(x, memory, seen) which has just run."""
    @torch.no_grad()
    def keep(module, given, named, out):
        if torch.compiler.is_compiling():                                         # or the graph would go on adding when the watch has ended
            return
        *inputs, seen = given
        q, k, _ = module.project(*inputs, **named)                                # a cache gets the same keys at the same slots once more
        kept.append(weights_of(q, k, seen, scale=module.scale, softcap=module.softcap))
    return keep


def weights_of(q, k, mask=None, *, scale=None, softcap=None):
    """q (B,N,T,E), k (B,G,S,E), mask as `attend` takes it -> the weights (B,N,T,S) by which `attend` adds up values."""
    if isinstance(mask, Tiles):
        S = k.shape[2]
        values = torch.eye(S, dtype=k.dtype, device=k.device).expand(*k.shape[:2], S, S)
        return attend(q, k, values, mask, scale=scale, softcap=softcap)           # values that are one-hot: their sum is the weights
    return attend_eager(q, k, k, mask, scale=scale, softcap=softcap)[1]


def draw_attention(weights, tokens, path, *, layer=-1, asking=None):
    """Weights of each block [(1,N,T,S), ...], tokens that are looked at (S texts) -> a heat map of one layer's heads side by side, as path.

    layer: from 0, or from the end, -1 the last. asking: those that look (T texts), when they are others: a row each. path: .png, .svg or .pdf.
    InputError for a layer that is not there, tokens of another number, more than 64 a side, several texts, and a path that can't be written."""
    if not isinstance(weights, (list, tuple)) or not weights:
        raise InputError("no weights to draw, which are a list: call the model within `with watched(...) as seen` (without cross-attention, "
                         "seen.cross is empty)")
    chosen = weights[whole("layer", layer, -len(weights), len(weights) - 1)]
    asking = tokens if asking is None else asking
    _, N, T, S = dims("weights", chosen, "B N T S", B=1, T=len(asking), S=len(tokens))
    if max(T, S) > ROOM:
        raise InputError(f"a heat map has room for {ROOM} tokens a side, got {max(T, S)}: give a shorter text")
    figure = _figure(chosen[0].detach().float().cpu(), *([_label(token) for token in texts] for texts in (asking, tokens)))
    return save_figure(figure, path, dpi=100)


def _figure(weights, asking, tokens):
    """(N,T,S), labels of rows and columns -> a figure with one heat map a head, black 0 and white 1."""
    from matplotlib.figure import Figure
    N, columns = len(weights), min(len(weights), ACROSS)
    rows = -(-N // columns)
    width, height = (max(1.5, 0.17 * len(labels)) + 0.8 for labels in (tokens, asking))
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    for head, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if head >= N:
            axes.set_axis_off()
            continue
        axes.imshow(weights[head], cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(len(asking)), asking, fontsize=7, parse_math=False)
        axes.set_title(f"head {head}", fontsize=8)
    return figure


def _label(token):
    """A token as one line: a line break is spelt \\n; a long one is cut."""
    return repr(token)[1:-1][:20]
