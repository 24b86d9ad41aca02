"""Pictures as people have them -> what models read: files, PIL pictures in any mode, arrays; checked, 8 bits a channel, on white, square.

A file is not trusted: its size is looked at before it is decoded, and a broken one is named in one sentence."""
import io
import os
import warnings

import numpy as np
import torch

from gencore.check import DataError, InputError

PIXELS = 64_000_000                  # a larger picture is refused before it is decoded
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")     # EPS is a program, an ICO holds other files


def open_picture(source):
    """Path, bytes, PIL picture, uint8 array (H,W), (H,W,3) or (H,W,4), or tensor (3,H,W) in [-1,1] -> PIL picture, RGB or RGBA."""
    from PIL import Image
    if torch.is_tensor(source):
        source = _from_tensor(source)
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if not isinstance(source, (str, os.PathLike, bytes, Image.Image)):
        raise InputError(f"expected a picture (path, PIL picture, array (H,W,3) or tensor (3,H,W)), got {type(source).__name__}")
    named = isinstance(source, (str, os.PathLike))
    name = str(source) if named else "the picture"
    if named and not os.path.isfile(source):
        raise DataError(f"{name or repr(name)} {'is a folder' if os.path.isdir(source) else 'does not exist'}: give the path of a picture")
    picture, more = _decoded(io.BytesIO(source) if isinstance(source, bytes) else source, name)
    if more:
        warnings.warn(f"{name} has more than one frame: the first is read", stacklevel=2)
    return picture


def read_picture(source, name):
    """Path or file of a picture -> PIL picture, RGB or RGBA: the first frame, turned as its camera says; `name` is what an error calls it."""
    return _decoded(source, name)[0]


def _decoded(source, name):
    """-> (PIL picture, RGB or RGBA, whether there are more frames), or InputError (too large, empty) or DataError (broken)."""
    from PIL import Image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                                           # decoders about details; PIL about a size above our own limit
            if isinstance(source, Image.Image):
                return _plain(source, name)
            with Image.open(source, formats=FORMATS) as picture:
                return _plain(picture, name)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{name} has more than {PIXELS:,} pixels: make it smaller") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{name} is not a picture that can be read: it is none of {', '.join(FORMATS)}, or its beginning is broken") from None
    except Exception as error:                                                        # decoders raise what they like
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{name} is not a picture that can be read: {why:.200}") from None


def _plain(picture, name):
    """An opened picture -> (its first frame, upright, RGB or RGBA; whether there are more frames)."""
    from PIL import ImageOps
    _check_size(picture, name)
    more = bool(getattr(picture, "is_animated", False))
    if more:
        picture.seek(0)
    picture.load()
    try:
        picture = ImageOps.exif_transpose(picture)
    except Exception:                                                                 # a broken note of the camera is no broken picture
        picture = picture.copy()
    return plain_colours(picture), more


def prepare(picture, size):
    """PIL picture, RGB or RGBA -> (3,size,size) in [-1,1]: on white, the longer side brought to `size`, the rest white."""
    from PIL import Image
    rgba = picture.convert("RGBA")
    scale = size / max(rgba.size)
    if scale != 1:
        rgba = rgba.resize([max(1, round(side * scale)) for side in rgba.size], Image.Resampling.BICUBIC)
    ground = Image.new("RGBA", (size, size), "white")
    ground.alpha_composite(rgba, ((size - rgba.width) // 2, (size - rgba.height) // 2))
    rgb = torch.from_numpy(np.asarray(ground.convert("RGB")).copy()).permute(2, 0, 1)    # (3, size, size)
    return rgb.float() / 127.5 - 1


def white_marks(source):
    """A picture, as open_picture takes it, of what is marked in white on black or on nothing (a mask, lines) -> PIL "L"; what can't be seen is black.

    Besides, as arrays and tensors (H,W), (1,H,W), (1,1,H,W), (H,W,1), or of three colours: bool, True is white; floating in 0..1, as diffusers has
    masks (in [-1,1] where one is below 0)."""
    from PIL import Image
    picture = open_picture(_from_marks(source) if torch.is_tensor(source) or isinstance(source, np.ndarray) else source)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return picture.convert("L")


def plain_colours(picture):
    """PIL picture of any mode -> RGBA when it has transparency, else RGB, 8 bits a channel."""
    if picture.mode in ("RGB", "RGBA"):
        return picture.copy()
    if picture.mode.startswith("I") or picture.mode == "F":                           # 16 bits, 32 bits, floating
        return eight_bits(np.asarray(picture)).convert("RGB")
    see_through = picture.mode in ("LA", "La", "PA", "RGBa") or "transparency" in picture.info
    if picture.mode == "La":
        picture = picture.convert("LA")
    return picture.convert("RGBA" if see_through else "RGB")


def eight_bits(values):
    """Grey values of more than 8 bits -> PIL "L": of 16 bits when one is above 255; floating ones in [0,1] when none is above 2, as sharpening goes.

    What is no number (a place without data) is black."""
    from PIL import Image
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0) if values.dtype.kind == "f" else values
    floating, top = values.dtype.kind == "f", values.max(initial=0)
    scale = 255.0 if floating and top <= 2 else 1.0 if top <= 255 else 255 / 65535
    return Image.fromarray((values * scale).clip(0, 255).round().astype(np.uint8))


def _check_size(picture, name):
    if picture.width * picture.height > PIXELS:
        raise InputError(f"{name} has {picture.width} x {picture.height} pixels, at most {PIXELS:,} are read: make it smaller")
    if not picture.width or not picture.height:
        raise InputError(f"{name} is empty: {picture.width} x {picture.height} pixels")


def _from_tensor(tensor):
    if tensor.dim() != 3 or tensor.shape[0] not in (1, 3) or not tensor.is_floating_point():
        raise InputError(f"a picture as a tensor should be floating, (3, height, width) in [-1, 1], "
                         f"got {tensor.dtype} {tuple(tensor.shape)}")
    if not tensor.isfinite().all() or tensor.abs().max() > 1 + 1e-3:
        raise InputError("a picture as a tensor should hold values in [-1, 1]: scale it, or give a PIL picture")
    array = ((tensor.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[-1] == 1 else array


def _from_marks(marks):
    """An array or a tensor of marks -> uint8 array (H,W) or (H,W,3 or 4)."""
    given = f"got {marks.dtype} {tuple(marks.shape)}"
    if torch.is_tensor(marks):
        marks = (marks.float() if marks.is_floating_point() else marks).detach().cpu().numpy()
    while marks.ndim > 2 and marks.shape[0] == 1:
        marks = marks[0]
    marks = marks[..., 0] if marks.ndim == 3 and marks.shape[-1] == 1 else marks
    marks = marks.transpose(1, 2, 0) if marks.ndim == 3 and marks.shape[0] == 3 and marks.shape[-1] not in (3, 4) else marks
    colours = (3, 4) if marks.dtype == np.uint8 else (3,)
    if not (marks.ndim == 2 or marks.ndim == 3 and marks.shape[-1] in colours) or not (marks.dtype in (bool, np.uint8) or marks.dtype.kind == "f"):
        raise InputError(f"marks (a mask, lines) should be bool, in 0..1 or uint8, (height, width), {given}")
    if marks.dtype == np.uint8:
        if marks.size and marks.max() == 1:
            raise InputError(f"marks (a mask, lines) of uint8 should be 0 and 255, got 0 and 1: give them as bool, {given}")
        return marks
    if marks.dtype == bool:
        return marks.astype(np.uint8) * 255
    if not np.isfinite(marks).all() or np.abs(marks).max(initial=0) > 1 + 1e-3:
        raise InputError(f"marks (a mask, lines) of floating numbers should be in 0..1, {given} with others")
    marks = marks if (marks >= 0).all() else (marks + 1) / 2
    return (marks.clip(0, 1) * 255).round().astype(np.uint8)


def _from_array(array):
    from PIL import Image
    if array.dtype != np.uint8 or not (array.ndim == 2 or array.ndim == 3 and array.shape[-1] in (3, 4)):
        raise InputError(f"a picture as an array should be uint8, (height, width) or (height, width, 3 or 4), "
                         f"got {array.dtype} {array.shape}")
    if 0 in array.shape:
        raise InputError(f"the picture is empty: shape {array.shape}")
    return Image.fromarray(array)
