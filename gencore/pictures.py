"""Pictures of any mode as 8 bits a channel: palettes, grey of 16 bits, floating values, CMYK, transparency."""
import numpy as np


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
    """Grey values of more than 8 bits -> PIL "L": of 16 bits when one is above 255; floating ones in [0,1] when none is above 1."""
    from PIL import Image
    floating, top = values.dtype.kind == "f", values.max(initial=0)
    scale = 255.0 if floating and top <= 1 else 1.0 if top <= 255 else 255 / 65535
    return Image.fromarray((np.nan_to_num(values.astype(np.float64)) * scale).clip(0, 255).round().astype(np.uint8))
