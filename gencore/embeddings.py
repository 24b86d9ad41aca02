"""What goes into a transformer: patches of pictures and video, noise levels, labels, codebooks, learned places."""
import torch
import torch.nn.functional as F
from torch import nn

from gencore.check import InputError, dims
from gencore.positions import sinusoidal


def rows_of(table, numbers, name):
    """table (an nn.Embedding), numbers (...,) -> (...,D). On a CPU numbers out of range are an InputError; a GPU has its own way to stop."""
    try:
        return table(numbers)
    except IndexError as error:
        raise InputError(f"{name} should be between 0 and {table.num_embeddings - 1}, got {int(numbers.min())} to {int(numbers.max())}") from error


class PatchEmbedding2D(nn.Module):
    """Picture (B,C,H,W) -> patches (B,P,D), row by row."""

    def __init__(self, channels, patch, width, bias=True):
        super().__init__()
        self.patch, self.channels = patch, channels
        self.projection = nn.Conv2d(channels, width, patch, stride=patch, bias=bias)

    def forward(self, pictures):
        _, _, H, W = dims("pictures", pictures, "B C H W", C=self.channels)
        if H % self.patch or W % self.patch:
            raise InputError(f"pictures: height and width should be multiples of {self.patch}, got {H} x {W}")
        return self.projection(pictures).flatten(2).transpose(1, 2)                  # (B, P, D)


class PatchEmbedding3D(nn.Module):
    """Video (B,C,F,H,W) -> patches (B,P,D), frame by frame, row by row; patch = (frames, height, width)."""

    def __init__(self, channels, patch, width, bias=True):
        super().__init__()
        self.patch, self.channels = tuple(patch), channels
        self.projection = nn.Conv3d(channels, width, self.patch, stride=self.patch, bias=bias)

    def forward(self, video):
        sizes = dims("video", video, "B C F H W", C=self.channels)[2:]
        if any(n % p for n, p in zip(sizes, self.patch)):
            raise InputError(f"video: frames, height and width should be multiples of {self.patch}, got {sizes}")
        return self.projection(video).flatten(2).transpose(1, 2)                     # (B, P, D)


def unpatchify(patches, height, width, patch):
    """(B, P, patch*patch*C), channel fastest (diffusers' order) -> (B, C, height*patch, width*patch)."""
    B, _, flat = dims("patches", patches, "B P F", P=height * width)
    C, rest = divmod(flat, patch ** 2)
    if rest:
        raise InputError(f"patches: the last size should be a multiple of {patch ** 2}, got {flat}")
    grid = patches.view(B, height, width, patch, patch, C)                           # (B, h, w, p, q, C)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(B, C, height * patch, width * patch)


class TimestepEmbedding(nn.Module):
    """Timesteps or noise levels (B,) -> (B,D): sinusoids, then a two-layer MLP (Ho et al. 2020; Peebles & Xie 2023)."""

    def __init__(self, width, features=256, shift=0.0, *, order="cos|sin"):
        super().__init__()
        self.features, self.shift, self.order = features, shift, order
        self.linear_1 = nn.Linear(features, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, t):
        dims("t", t, "B")
        waves = sinusoidal(t, self.features, self.order, shift=self.shift).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))


class LabelEmbedding(nn.Module):
    """Labels (B,) in 0..classes-1 -> (B,D); the row `classes` is the null label that guidance compares with."""

    def __init__(self, classes, width):
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, labels, dropped=None):
        """dropped (B,) bool: rows that get the null label."""
        dims("labels", labels, "B")
        if dropped is not None:
            labels = torch.where(dropped, self.classes, labels)
        return rows_of(self.table, labels, "labels")


class CodebookEmbedding(nn.Module):
    """Codes (B,K,T) -> (B,T,D), the sum over codebooks; code `size` is the filler of delayed corners (MusicGen)."""

    def __init__(self, books, size, width):
        super().__init__()
        self.books, self.size = books, size
        self.tables = nn.ModuleList(nn.Embedding(size + 1, width) for _ in range(books))

    def forward(self, codes):
        dims("codes", codes, "B K T", K=self.books)
        return sum(rows_of(table, codes[:, k], f"codes of book {k}") for k, table in enumerate(self.tables))        # (B, T, D)


class LearnedPositions(nn.Module):
    """Positions (...,) -> (...,D) from a table of `size` rows; offset as RoBERTa and OPT need it."""

    def __init__(self, size, width, offset=0):
        super().__init__()
        self.offset = offset
        self.table = nn.Embedding(size + offset, width)

    def forward(self, positions):
        return rows_of(self.table, positions + self.offset, "positions" if not self.offset else f"positions + {self.offset}")
