"""Captioner: a picture -> words."""
import torch

from gencore.cache import Cache


def greedy(model, pictures, end, *, longest=32):
    """pictures (B,C,H,W) in [-1,1] -> lists of ids, without `end`: the likeliest token each time."""
    B, P = len(pictures), model.cfg.vision.patches
    ids = torch.full((B, P), model.cfg.image_token, device=pictures.device)
    cache = Cache(model.cfg.transformer, B, P + longest, device=pictures.device)
    words, done = [], torch.zeros(B, dtype=torch.bool, device=pictures.device)
    logits = model(ids, pictures, cache=cache)[:, -1]                                # (B, V)
    for _ in range(longest):
        token = torch.where(done, end, logits.argmax(-1))                            # (B,)
        words.append(token)
        done = done | (token == end)
        if done.all():
            break
        logits = model(token[:, None], cache=cache)[:, -1]
    return [[t for t in row if t != end] for row in torch.stack(words, 1).tolist()]
