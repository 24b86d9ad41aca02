"""Edits pictures by words, with a painter that ships or is yours: the whole picture, a part of it, more of it, or the way from one to another.

    python examples/image/edit.py                                                      a sheet of edits of pictures that it draws first: runs/edit.png
    python examples/image/edit.py face.png "crying face, noto style" --strength 0.6    your picture, as far from it as the strength says
    python examples/image/edit.py face.png "cowboy hat face, noto style" --mask top.png                only where the mask is white
    python examples/image/edit.py face.png "grinning face, noto style" --beyond 16 0 0 0             more of it: pixels left, top, right, bottom
    python examples/image/edit.py face.png "grinning face, noto style" --variations 5            others like it, in a row
    python examples/image/edit.py --between "red apple" lemon --frames 12              a GIF that goes from one to the other

The painter knows digits, emoji and scenes of coloured shapes at 64x64; a picture of another size is brought to it, on white."""
import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from gencore.check import InputError, command
from gencore.folder import file_for
from imagegen import Editor
from imagegen.walk import save_gif

SHEET = (("as drawn", None), ("openmoji style", ("grinning face, openmoji style", 0.7, None)), ("crying", ("crying face, noto style", 0.6, None)),
         ("a robot of it", ("robot, noto style", 0.8, None)), ("a hat on it", ("cowboy hat face, noto style", None, (0, 0.47))),
         ("another mouth", ("face with tongue, noto style", None, (0.56, 0.9))))


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, help="a picture file (default: one that is drawn)")
    parser.add_argument("prompt", nargs="?", help="what it should become")
    parser.add_argument("--mask", type=Path, help="a picture of the same size, white where it is drawn anew")
    parser.add_argument("--beyond", nargs=4, type=int, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="margins that are drawn; below 0: cut off")
    parser.add_argument("--variations", type=int, metavar="COUNT", help="so many pictures like it")
    parser.add_argument("--strength", type=float, help="how much may change, 0 to 1 (default 0.6, with a mask 1)")
    parser.add_argument("--between", nargs="+", metavar="PROMPT", help="two prompts or more: a GIF that leads through them")
    parser.add_argument("--frames", type=int, default=8, help="of each part of that way (default 8)")
    parser.add_argument("--painter", default="painter", help="a shipped name or a folder (default: painter)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: runs/edit.png, for a way runs/between.gif")
    args = parser.parse_args()
    check(args)
    out = args.out or Path("runs") / ("between.gif" if args.between else "edit.png")
    if out.suffix.lower() not in ([".gif"] if args.between else [".png", ".jpg", ".jpeg", ".webp"]):
        raise InputError(f"--out should end in {'.gif' if args.between else '.png, .jpg or .webp'}, got {out.name}")
    file_for(out)
    editor = Editor.from_pretrained(args.painter)
    if args.between:
        save_gif(editor.between(args.between, seeds=[args.seed], frames=args.frames), out, milliseconds=120)
    elif args.picture:
        if args.prompt is None:
            raise InputError(f'what should {args.picture} become? Give a prompt behind it, such as "crying face, noto style"')
        edited(editor, args).save(out)
    else:
        sheet(editor, args.seed).save(out)
    print(f"wrote {out}")


def check(args):
    """Only what goes together: one of the ways, and what belongs to it."""
    ways = [name for name in ("beyond", "variations", "between") if getattr(args, name) is not None]
    rest = [name for name in ("mask", "strength") if getattr(args, name) is not None]
    lost = ways[1:] or [name for name in rest if ways and (ways[0], name) != ("variations", "strength")]
    if lost:
        raise InputError(f"--{ways[0]} and --{lost[0]} don't go together: give one of them")
    if args.picture and args.between:
        raise InputError(f"--between draws its own pictures: leave {args.picture} out")
    if not args.picture and not args.between and (ways or rest):
        raise InputError(f"--{(ways + rest)[0]} is for a picture of yours: give a file and a prompt before it")


def edited(editor, args):
    """The picture that was given, as the arguments say."""
    if args.beyond:
        left, top, right, bottom = args.beyond
        return editor.outpaint(args.picture, args.prompt, left=left, top=top, right=right, bottom=bottom, seed=args.seed)
    if args.variations is not None:
        strength = 0.6 if args.strength is None else args.strength
        return row(editor.variations(args.picture, args.prompt, count=args.variations, strength=strength, seed=args.seed))
    return editor(args.picture, args.prompt, strength=args.strength, mask=args.mask, seed=args.seed)


def sheet(editor, seed):
    """A face, and what becomes of it."""
    face = editor.painter("grinning face, noto style", seed=seed, progress=False)[0]
    pictures = [face]
    for name, edit in SHEET[1:]:
        prompt, strength, rows = edit                                        # rows: from where to where, as shares of the height
        mask = None
        if rows is not None:
            mask = np.zeros(face.size[::-1], bool)
            mask[round(rows[0] * face.height):round(rows[1] * face.height)] = True
        pictures.append(editor(face, prompt, strength=strength, mask=mask, seed=seed))
    print("\n".join(name for name, _ in SHEET))
    return row(pictures)


def row(pictures):
    """PIL pictures side by side."""
    whole = Image.new("RGB", (len(pictures) * (pictures[0].width + 4), pictures[0].height), "white")
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i * (picture.width + 4), 0))
    return whole


if __name__ == "__main__":
    main()
