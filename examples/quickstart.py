"""A minute with the models that ship: a paragraph, pictures drawn from words, spoken words, and the pictures read back into words.

    python examples/quickstart.py                      writes into ./demo-output, needs no network and no GPU
    python examples/quickstart.py --seed 1             another paragraph, other pictures, other takes
"""
import argparse
import re
import sys
import time
from itertools import chain
from pathlib import Path

from gencore.check import command
from gencore.folder import folder_for

OPENING = "It was a dark night, and the rain"
PROMPTS = ["a handwritten seven", "slice of pizza, noto style", "rocket, noto style", "a handwritten three",
           "sunflower, noto style", "cat face, fluent flat style", "penguin, openmoji style", "red heart, fluent 3d style"]
SPOKEN = [("seven", "george"), ("two", "jackson"), ("nine", "lucas"), ("four", "theo")]


def write_paragraph(out: Path, seed: int) -> Path:
    """A paragraph in the novelist's hand, on the screen as it comes."""
    from textgen import CausalLM
    lm = CausalLM.from_pretrained("novelist")
    settings, column = {"max_new_tokens": 120, "temperature": 0.8, "top_p": 0.95, "seed": seed}, 0
    for piece in chain([OPENING], lm.stream(OPENING, **settings)):
        for part in re.findall(r"\s+|\S+", piece):
            part = "\n" if part == " " and column > 90 else part
            column = 0 if "\n" in part else column + len(part)
            print(part, end="", flush=True)
    print()
    path = out / "paragraph.txt"
    lm.generate(OPENING, **settings).save(path)          # the same words as one text, which knows how it was made
    return path


def draw_pictures(out: Path, seed: int) -> tuple[Path, list]:
    """Eight prompts -> the pictures, each in its own file, and all of them in one grid, with the recipes of all."""
    from gencore.recipe import Recipe, embed_png
    from imagegen import TextToImage
    from imagegen.data import labelled_grid
    painter = TextToImage.from_pretrained("painter")
    pictures = painter(PROMPTS, steps=20, guidance=3.0, seed=seed)
    (out / "pictures").mkdir(exist_ok=True)
    for prompt, picture in zip(PROMPTS, pictures):
        picture.save(out / "pictures" / f"{prompt.replace(',', '').replace(' ', '-')}.png")
    path = out / "pictures.png"
    labelled_grid(pictures, PROMPTS, columns=4).save(path)
    embed_png(path, [Recipe.from_json(picture.info["recipe"]) for picture in pictures])
    return path, pictures


def speak_words(out: Path, seed: int) -> tuple[Path, Path]:
    """Four digit words, each in a named voice -> one clip after another, with the recipes of all, and their spectrogram."""
    import torch

    from audiogen import Audio, TextToSpeech
    from gencore.recipe import embed_wav
    speaker = TextToSpeech.from_pretrained("speaker")
    clips = [speaker(word, voice=voice, seed=seed) for word, voice in SPOKEN]
    (out / "words").mkdir(exist_ok=True)
    for clip, (word, voice) in zip(clips, SPOKEN):
        clip.save(out / "words" / f"{word}-{voice}.wav")
    whole = Audio(torch.cat([part for clip in clips for part in (clip.waveform, torch.zeros(1, clip.sample_rate // 5))], 1), clips[0].sample_rate)
    embed_wav(whole.save(out / "spoken.wav"), [clip.recipe for clip in clips])
    return out / "spoken.wav", whole.draw(out / "spectrogram.png")


def read_pictures(pictures: list) -> None:
    """The pictures just drawn, in words again."""
    from multimodal import Captioner
    reader = Captioner.from_pretrained("reader")
    width = max(map(len, PROMPTS))
    print(f"{'asked for':<{width}}   read back")
    for prompt, picture in zip(PROMPTS, pictures):
        print(f"{prompt:<{width}}   {reader(picture)}")


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder to write into (default: demo-output)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same files (default: 0)")
    args = parser.parse_args()
    folder_for(args.out)
    begun = time.perf_counter()
    print("\n1 of 4: a paragraph by the novelist\n")
    paragraph = write_paragraph(args.out, args.seed)
    print("\n2 of 4: pictures by the painter\n")
    grid, pictures = draw_pictures(args.out, args.seed)
    print("\n3 of 4: words by the speaker\n")
    spoken, spectrogram = speak_words(args.out, args.seed)
    print(f"{', '.join(f'{word} ({voice})' for word, voice in SPOKEN)}\n\n4 of 4: captions by the reader\n")
    read_pictures(pictures)

    made = {paragraph: "the paragraph", grid: "the pictures with their prompts", args.out / "pictures": "each picture",
            spoken: "the spoken words", args.out / "words": "each word", spectrogram: "the spectrogram of the words"}
    width = max(len(str(path)) for path in made)
    print(f"\nDone in {time.perf_counter() - begun:.0f} s. What was made:")
    print("\n".join(f"  {path!s:<{width}}   {what}" for path, what in made.items()))
    again = (args.out / "words" / "{}-{}.wav".format(*SPOKEN[0])).as_posix()
    print("\nAll but the spectrogram remember how they were made (the grid and the spoken words: each of their parts). To make one again:")
    print(f"  {Path(sys.executable).as_posix()} -c \"import gencore; gencore.replay('{again}')\"")


if __name__ == "__main__":
    main()
