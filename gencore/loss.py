"""Cross-entropy over a large vocabulary without keeping its logits: head and softmax run over chunks of rows.

The gradient of each chunk is made right after its logits, while they are in the cache, so that nothing is computed twice (Wijmans et al. 2024)."""
import torch
import torch.nn.functional as F

from gencore.check import InputError

IGNORED = -100                                # a target that does not count, as in torch


def chunked_cross_entropy(hidden, weight, targets, *, softcap=None, chunk=256):
    """hidden (R,D), weight (V,D), targets (R,) long, IGNORED = no target -> (summed loss, number of targets).

    Equal to F.cross_entropy(hidden @ weight.T, targets, reduction="sum"); only (chunk,V) logits are alive at a time.
    softcap: logits become cap * tanh(logit / cap) first (Gemma 2)."""
    check_targets(targets, len(weight))
    if not torch.is_grad_enabled():
        parts = [F.cross_entropy(capped(F.linear(h, weight).float(), softcap), t, ignore_index=IGNORED, reduction="sum")
                 for h, t in zip(hidden.split(chunk), targets.split(chunk))]
        return torch.stack(parts).sum(), (targets != IGNORED).sum()
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _Summed.apply(hidden, weight, targets, softcap, chunk, dtype), (targets != IGNORED).sum()


def check_targets(targets, classes):
    """InputError for targets that are neither IGNORED nor below `classes`, on a CPU; a GPU has its own way to stop."""
    wrong = targets[(targets != IGNORED) & ((targets < 0) | (targets >= classes))] if targets.device.type == "cpu" else ()
    if len(wrong):
        raise InputError(f"targets should be between 0 and {classes - 1}, or {IGNORED} for none, got {int(wrong[0])}")


def capped(logits, softcap):
    """logits -> softcap * tanh(logits / softcap), or as they are."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class _Summed(torch.autograd.Function):
    """The summed loss; its gradients are ready when forward ends, backward only scales them."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, softcap, chunk, dtype):
        with torch.autocast(hidden.device.type, enabled=False):
            low = weight.to(dtype)
            total = hidden.new_zeros((), dtype=torch.float32)
            to_hidden = torch.empty_like(hidden)
            to_weight = torch.zeros_like(weight, dtype=torch.float32)
            for start in range(0, len(hidden), chunk):
                rows = slice(start, start + chunk)
                h, t = hidden[rows].to(dtype), targets[rows]
                logits = capped(F.linear(h, low).float(), softcap)                    # (chunk, V)
                flatter = None if softcap is None else 1 - (logits / softcap) ** 2    # the slope of the cap
                counts = t != IGNORED
                place = t.clamp(min=0)[:, None]                                       # (chunk, 1)
                log_sum = logits.logsumexp(-1, keepdim=True)                          # (chunk, 1)
                total += ((log_sum - logits.gather(1, place))[:, 0] * counts).sum()
                slope = logits.sub_(log_sum).exp_()                                   # softmax, minus one at the target
                slope.scatter_add_(1, place, slope.new_full((), -1.0).expand(place.shape))
                slope = slope.mul_(counts[:, None] if flatter is None else flatter.mul_(counts[:, None])).to(dtype)
                to_hidden[rows] = (slope @ low).to(hidden.dtype)
                to_weight += slope.t() @ h
        ctx.save_for_backward(to_hidden, to_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, above):
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden * above.to(to_hidden.dtype), to_weight * above.to(to_weight.dtype), None, None, None, None
