"""Pictures with captions as training rows, and how a row is varied: a function of (seed, epoch, row), so that a resumed run repeats it.

A row is kept with its transparency (4,H,W): turning and shifting come first, then the ground it lies on."""
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from gencore.check import DataError
from gencore.data_folder import file_of, image_folder
from gencore.pictures import plain_colours, read_picture

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class CaptionRows:
    """Captioned pictures: row i is (RGBA (4,H,W) uint8, caption). `picture(i)` makes it, `captions[i]` says it."""

    def __init__(self, picture, captions, *, repeats=None):
        """repeats: how often each row comes in an epoch (list of whole numbers); None = once."""
        self.picture, self.captions = picture, captions
        self.order = np.arange(len(captions)) if repeats is None else np.repeat(np.arange(len(captions)), repeats)

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        row = self.order[index]
        return self.picture(row), self.captions[row]


class CaptionBatchRows:
    """Several CaptionRows, one after the other, with their captions as ids: what gencore.data.Batches takes.

    A row: pictures (4,H,W) uint8; ids (P + longest,) = placeholders, caption, end, padding; lengths of caption + end; draws."""

    def __init__(self, parts, encode, image_token, *, patches, longest=32, seed=0):
        """encode: caption -> ids with the end; patches: placeholders before a caption."""
        self.parts, self.seed, self.longest = parts, seed, longest
        self.starts = np.cumsum([0] + [len(part) for part in parts])
        self.encode, self.image_token, self.patches = encode, image_token, patches
        self.known = {}
        for caption in (caption for part in parts for caption in part.captions):     # one that can't be learnt ends no run in its middle
            self._words(caption)

    def __len__(self):
        return int(self.starts[-1])

    def at(self, index, epoch):
        """Row `index` as epoch `epoch` sees it."""
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        picture, caption = self.parts[part][index - self.starts[part]]
        words = self._words(caption)
        ids = torch.zeros(self.patches + self.longest, dtype=torch.long)
        ids[:self.patches] = self.image_token
        ids[self.patches:self.patches + len(words)] = torch.tensor(words)
        draws = np.random.default_rng((self.seed, epoch, index)).random(VARIATION_DRAWS, dtype=np.float32)
        return {"pictures": picture, "ids": ids, "lengths": len(words), "draws": torch.from_numpy(draws)}

    def __getitem__(self, index):
        return self.at(index, 0)

    def _words(self, caption):
        if caption not in self.known:
            words = self.encode(caption)
            if len(words) > self.longest:
                raise DataError(f'the caption "{caption[:40]}..." has {len(words)} tokens, {self.longest} are the most: '
                                "shorten it or raise longest")
            self.known[caption] = words
        return self.known[caption]


def collate(rows):
    """Rows of CaptionBatchRows -> pictures (B,3,H,W) in [-1,1], varied; ids (B,T); lengths (B,)."""
    batch = torch.utils.data.default_collate(rows)
    draws = batch.pop("draws")
    return {**batch, "pictures": vary(batch["pictures"], draws)}


VARIATION_DRAWS = 20
NOISE_SEED = 19                      # of the draws: the last one seeds the row's noise


def vary(pictures, draws):
    """RGBA (B,4,H,W) uint8 and draws (B,20) in [0,1) -> (B,3,H,W) in [-1,1]: turned, shifted, on a ground, softer, brighter, noisier.

    One row in three stays as it is. Brightness moves little: it must not turn one skin tone into the next."""
    B, _, H, W = pictures.shape
    plain = draws[:, 0] < 1 / 3
    spread = torch.where(plain[:, None], 0.0, 2 * draws[:, 1:] - 1)                   # (B, 19) in [-1, 1), 0 = leave it
    rgba = pictures.float() / 255
    rgba = torch.cat((rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]), 1)                     # colours premultiplied by alpha
    rgba = moved(rgba, spread[:, :5])                                                 # (B, 4, H, W)
    ground = grounds(draws[:, 6:10], plain)[..., None, None]                          # (B, 3, 1, 1)
    rgb = rgba[:, :3] + (1 - rgba[:, 3:]) * ground                                    # (B, 3, H, W)
    sigma = torch.where(plain | (draws[:, 10] < 0.5), 0.0, 0.3 + 1.0 * draws[:, 11])
    rgb = softened(rgb, sigma)
    contrast, shift = 1 + 0.06 * spread[:, 11:12, None, None], 0.03 * spread[:, 12:13, None, None]
    rgb = (rgb - 0.5) * contrast + 0.5 + shift
    strength = torch.where(plain | (draws[:, 14] < 0.7), 0.0, 0.05 * draws[:, 15])
    for i in strength.nonzero()[:, 0].tolist():
        generator = torch.Generator().manual_seed(int(draws[i, NOISE_SEED] * 2 ** 24))
        rgb[i] += strength[i] * torch.randn(3, H, W, generator=generator)
    return rgb.clamp(0, 1) * 2 - 1


def moved(rgba, spread):
    """(B,4,H,W) under small turns (4 degrees), sizes (0.95 to 1.05) and shifts (2.5 %); spread (B,5) in [-1,1]."""
    angle = spread[:, 0] * math.radians(4)
    across, down = 1 + 0.05 * spread[:, 1], 1 + 0.05 * spread[:, 1] + 0.02 * spread[:, 2]
    rows = (angle.cos() / across, -angle.sin() / across, 0.05 * spread[:, 3], angle.sin() / down, angle.cos() / down, 0.05 * spread[:, 4])
    grid = F.affine_grid(torch.stack(rows, -1).view(-1, 2, 3), list(rgba.shape), align_corners=False)
    return F.grid_sample(rgba, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def grounds(draws, plain):
    """Colours (B,3) in [0,1] of what lies behind a transparent picture: white, near white, or (one in ten) anything."""
    kind, colour = draws[:, :1], draws[:, 1:4]
    near = 1 - 0.15 * colour
    ground = torch.where(kind < 0.6, torch.ones(()), torch.where(kind < 0.9, near, colour))
    return torch.where(plain[:, None], torch.ones(()), ground)


def softened(rgb, sigma):
    """(B,3,H,W) blurred by a Gaussian of its own sigma (B,) in pixels; 0 = not at all."""
    B, C, H, W = rgb.shape
    taps = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (taps / sigma.clamp(min=0.05)[:, None]) ** 2)           # (B, 7)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(C, 0)           # (B*C, 7)
    x = F.pad(rgb, (3, 3, 3, 3), mode="replicate").view(1, B * C, H + 6, W + 6)
    x = F.conv2d(x, kernel[:, None, None, :], groups=B * C)
    return F.conv2d(x, kernel[:, None, :, None], groups=B * C).view(B, C, H, W)


# ---- sources ----

def caption_rows(folder, split, size):
    """A data folder -> [CaptionRows]: emoji/ and mnist/ inside it, or one imagefolder with captions (metadata.jsonl, .csv, parquet)."""
    folder = Path(folder)
    if emoji_and_digits(folder):
        emoji = image_folder(folder / "emoji", split, text="name", check=False)
        repeats = emoji_repeats(emoji) if split == "train" else None
        return [emoji_rows(emoji, repeats), mnist_rows(image_folder(folder / "mnist", split, text=None, check=False))]
    return [folder_rows(image_folder(folder, split), size)]


def emoji_and_digits(folder):
    """Whether a folder holds what the shipped reader learnt from."""
    return (folder / "emoji").is_dir() and (folder / "mnist").is_dir()


def folder_rows(rows, size):
    """Rows with "image" and "text" -> CaptionRows, decoded once."""
    pictures = torch.stack([see_through(rows[i]["image"], size) for i in range(len(rows))])
    return CaptionRows(lambda i: pictures[i], [str(text) for text in rows.column("text")])


def mnist_rows(rows, *, negatives=True):
    """Rows of MNIST (image, label) -> CaptionRows: dark ink on white, 28 brought to 56 (bicubic), 4 pixels of margin.

    negatives: every tenth is left white on black, as the files have it."""
    stored, labels = rows.column("image"), rows.column("label")

    def picture(i):
        from PIL import Image
        ink = _stored(stored[i], f"mnist, picture {i}").convert("L").resize((56, 56), Image.Resampling.BICUBIC)
        ink = np.pad(np.asarray(ink), 4)                                              # (64, 64)
        whole = np.zeros((4, 64, 64), dtype=np.uint8)
        whole[3] = ink                                                                # black, as opaque as there is ink
        if negatives and i % 10 == 9:
            whole[:3], whole[3] = ink, 255
        return torch.from_numpy(whole)

    return CaptionRows(picture, [f"a handwritten {DIGITS[label]}" for label in labels])


def emoji_rows(rows, repeats=None):
    """Rows of the emoji set (image RGBA 64x64, name) -> CaptionRows, decoded once."""
    pictures = np.empty((len(rows), 4, 64, 64), dtype=np.uint8)
    for i, cell in enumerate(rows.column("image")):
        picture = _stored(cell, f"emoji, picture {i}").convert("RGBA")
        if picture.size != (64, 64):
            raise DataError(f"emoji, picture {i} should have 64x64 pixels, got {picture.width}x{picture.height}")
        pictures[i] = np.asarray(picture).transpose(2, 0, 1)
    pictures = torch.from_numpy(pictures)
    return CaptionRows(lambda i: pictures[i], rows.column("name"), repeats=repeats)


def _stored(cell, name):
    """A parquet cell -> PIL picture, or DataError naming it."""
    return read_picture(file_of(cell, name), name)


def emoji_repeats(rows):
    """How often an emoji comes while each digit comes once: 12 times in a skin tone, 18 times without, flags 6 times."""
    return [6 if group == "Flags" else 18 if tone == "none" else 12
            for group, tone in zip(rows.column("group"), rows.column("skin_tone"))]


def see_through(picture, size):
    """PIL picture -> (4,size,size) uint8 with its transparency kept and the rest of the square transparent: a row to train on."""
    from PIL import Image
    rgba = plain_colours(picture).convert("RGBA")
    scale = size / max(rgba.size)
    if scale != 1:
        rgba = rgba.resize([max(1, round(side * scale)) for side in rgba.size], Image.Resampling.BICUBIC)
    whole = Image.new("RGBA", (size, size), (255, 255, 255, 0))
    whole.paste(rgba, ((size - rgba.width) // 2, (size - rgba.height) // 2))
    return torch.from_numpy(np.asarray(whole).copy()).permute(2, 0, 1).contiguous()
