"""Trains the painter that ships: handwritten digits and emoji, drawn from words.

    python -m imagegen.train_painter --data FOLDER --out runs/painter          FOLDER holds mnist/train.parquet and emoji/train.parquet
    python -m imagegen.train_painter --data FOLDER --out runs/painter --resume painting.steps=20000
    python -m imagegen.train_painter --data FOLDER --out runs/longer --base painter        autoencoder and prompts stay, the transformer goes on
    python -m imagegen.train_painter --data FOLDER --out runs/sharper --base painter --only decoder

Three parts, each with its folder (loss.png, samples/, checkpoints/) under --out, each saying before it starts how long it will take. The folder
for `TextToImage.from_pretrained` is OUT/transformer/model, and OUT/decoder/model after --only decoder."""
import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from gencore.check import command
from gencore.config import override
from gencore.text_encoder import TextEncoder, TextEncoderConfig, train_prompt_tokenizer
from gencore.train import Run, TrainConfig
from imagegen.alignment import Alignment, PictureTower
from imagegen.autoencoder import Autoencoder, AutoencoderConfig
from imagegen.data import DIGIT_WORDINGS, DIGITS, STYLES, Pictures, cached, caption, digits, emoji, grid, to_pil, to_unit
from imagegen.dit import DiT, DiTConfig
from imagegen.emoji_names import COMMON
from imagegen.text_to_image import DrawSettings, Painter, TextToImage, pipeline_files
from imagegen.training import Captioned, train_autoencoder, train_decoder, train_prompts, train_transformer

SHOWN = ([f"a handwritten {word}" for word in DIGITS] + [f"{name}, noto style" for name in COMMON[:200:9][:17]]
         + [f"red apple, {style} style" for style in STYLES.values()])
TONES, PEOPLE = ("light", "medium-light", "medium", "medium-dark", "dark"), ("man", "woman", "person")


@dataclass(frozen=True)
class Plan:
    """Everything that a run can be told by key=value."""
    noto: float = 4.0                                  # how often Noto's design is drawn to one of each other design
    digits: int = 20000                                # of MNIST's pictures, the first
    digit_share: float = 0.25                          # of each batch
    autoencoder: AutoencoderConfig = field(default_factory=lambda: AutoencoderConfig(channels=(32, 32, 64, 96)))
    words: TextEncoderConfig = TextEncoderConfig()
    transformer: DiTConfig = DiTConfig()
    autoencoding: TrainConfig = TrainConfig(steps=2400, batch=16, lr=2e-3, muon_lr=4e-3, warmup=50, decay=0.5, weight_decay=0.0, ema=0.99,
                                            precision="auto")
    decoding: TrainConfig = TrainConfig(steps=2500, batch=16, lr=1e-3, warmup=50, decay=0.7, weight_decay=0.0, ema=0.995, precision="auto",
                                        eval_every=500)
    prompts: TrainConfig = TrainConfig(steps=1200, batch=128, lr=1.5e-3, warmup=50, decay=0.5, weight_decay=0.05, precision="auto")
    painting: TrainConfig = TrainConfig(steps=12000, batch=64, lr=1e-3, muon_lr=2e-3, decay=0.4, weight_decay=0.02, ema=0.999,
                                        precision="auto", eval_every=500, save_every=500)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Plan, such as painting.steps=20000")
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist/ and emoji/")
    parser.add_argument("--out", type=Path, default=Path("runs/painter"))
    parser.add_argument("--base", "--start", help="a painter to go on from, by name or folder: only its transformer is trained")
    parser.add_argument("--only", choices=["decoder"], help="with --base: the decoder goes on alone, under latents that stay")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_intermixed_args()
    if args.only and not args.base:
        parser.error("--only decoder needs --base: which painter's decoder should go on?")
    plan = override(Plan(), args.settings)
    drawn = cached(args.out / "cache", "emoji", lambda: emoji(args.data / "emoji"))
    written = cached(args.out / "cache", "mnist", lambda: digits(args.data / "mnist"))
    written = Pictures(written.pixels[:plan.digits], written.rows[:plan.digits])
    (sharpen if args.only else train)(plan, drawn, written, args)


def train(plan, drawn, written, args):
    """The parts, one after another; with --base the last two."""
    def run(part, *, sample=None, export=None):
        return Run(args.out / part, args.resume, extend=True, card={"title": f"Painter: {part}"}, sample=sample, export=export)

    torch.manual_seed(0)
    everything = captioned(drawn, written, 0.1)
    if args.base:                                              # the picture tower did not ship: it learns anew what the words mean
        before = TextToImage.from_pretrained(args.base)
        painter, tokenizer = before.painter, before.tokenizer
        painter.transformer.requires_grad_(True)                # what is loaded is at rest
    else:
        autoencoder = train_autoencoder(Autoencoder(plan.autoencoder), everything, plan.autoencoding, run=run("autoencoder"))
        tokenizer = train_prompt_tokenizer(vocabulary(drawn), plan.words.vocab, length=32)
        encoder = TextEncoder(override(plan.words, [f"vocab={len(tokenizer)}"]))
        painter = Painter(DiT(plan.transformer), encoder, autoencoder)
    alignment = train_prompts(Alignment(painter.text_encoder, PictureTower()), tokenizer, everything, plan.prompts, run=run("prompts"))

    def sample(model, folder, step):
        pictures = TextToImage(model.painter, tokenizer).draw(SHOWN, range(len(SHOWN)), DrawSettings(steps=12))
        to_pil(grid(pictures, 8)[None])[0].save(folder / f"{step:06d}.png")

    chosen = drawn.where(lambda row: row["group"] != "Flags")
    export = lambda model: pipeline_files(model.painter, tokenizer, dtype=torch.bfloat16)
    train_transformer(painter, alignment.tower, tokenizer, captioned(chosen, written, plan.digit_share, favour=6.0, noto=plan.noto),
                      config=plan.painting, run=run("transformer", sample=sample, export=export))


def sharpen(plan, drawn, written, args):
    """A painter's decoder alone."""
    before = TextToImage.from_pretrained(args.base)
    some = captioned(drawn.where(lambda row: row["group"] != "Flags"), written, 0.1, favour=2.0, noto=2.0)
    shown = to_unit(some.pixels[some.draw(24, np.random.default_rng(0))])

    def sample(model, folder, step):
        pairs = torch.cat((shown, model.decode(model.encode(shown)[0]).clamp(-1, 1)))
        to_pil(grid(pairs, 12)[None])[0].save(folder / f"{step:06d}.png")

    run = Run(args.out / "decoder", args.resume, extend=True, card={"title": "Painter: decoder"}, sample=sample,
              export=lambda model: pipeline_files(before.painter, before.tokenizer, dtype=torch.bfloat16))
    train_decoder(before.painter.autoencoder, some, plan.decoding, run=run)


def captioned(drawn, written, digit_share, *, favour=1.0, noto=1.0):
    """Emoji and digits as one set. A concept counts once, however many tones and genders it has; people, signs and flags count less.

    favour: how often a common name comes to a rare one; noto: how often that design comes to each other."""
    rows = [*drawn.rows, *written.rows]
    copies = Counter((row["concept"], row["style"]) for row in drawn.rows)
    less = {"People & Body": 0.35, "Symbols": 0.5, "Flags": 0.3}
    weights = np.array([less.get(row["group"], 1.0) * (favour if row["name"] in COMMON else 1.0) * (noto if row["style"] == "noto" else 1.0)
                        / copies[row["concept"], row["style"]] for row in drawn.rows])
    weights = np.concatenate((weights / weights.sum() * (1 - digit_share), np.full(len(written), digit_share / len(written))))
    keys = [(row["concept"], row["gender"], row["skin_tone"], row["style"]) if "concept" in row else row["label"] for row in rows]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    pixels, things = torch.cat((drawn.pixels, written.pixels)), torch.tensor([numbers[key] for key in keys])
    return Captioned(pixels, lambda i, rng: caption(rows[i], rng), things, weights)


def vocabulary(drawn):
    """Texts for the tokenizer: every name and keyword once or a few times, so that the words of things become tokens, not those of people."""
    names = {row["concept"]: row["name"].split(":")[0] for row in drawn.rows if row["skin_tone"] == "none" and row["group"] != "Flags"}
    texts = [f"{name}, {style} style" for name in sorted(set(names.values())) for style in list(STYLES.values())[:2]]
    texts += [name for name in COMMON for _ in range(8)] + sorted({row["name"] for row in drawn.rows if row["group"] == "Flags"})
    texts += [wording.format(word=word, figure=i) for wording in DIGIT_WORDINGS for i, word in enumerate(DIGITS)]
    texts += [f"{tone} skin tone, {who}" for tone in TONES for who in PEOPLE for _ in range(20)]
    return texts + sorted({word for row in drawn.rows for word in row["keywords"] if row["group"] != "Flags"})


if __name__ == "__main__":
    main()
