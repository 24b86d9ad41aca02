"""Ways from one picture to another: between latents, and as a file that moves."""
import torch
import torch.nn.functional as F

from gencore.check import InputError, whole
from gencore.folder import writing


def along_sphere(a, b, share):
    """Two latents (Z,) -> the one at this share of the arc between them (White 2016)."""
    angle = torch.arccos(F.cosine_similarity(a, b, dim=0).clamp(-1, 1))
    if float(angle.sin()) < 1e-4:
        return torch.lerp(a, b, share)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / angle.sin()


def save_gif(pictures, path, *, milliseconds=60):
    """PIL images -> an animated GIF that goes round and round."""
    pictures = list(pictures)
    if not pictures:
        raise InputError("no pictures: give at least one")
    whole("milliseconds", milliseconds, 10, 10_000)
    with writing(path):
        pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
