"""Trains the painter that ships: handwritten digits, emoji and scenes of coloured shapes, drawn from words.

    python -m multimodal.scenes --out FOLDER/scenes                            FOLDER holds mnist/ and emoji/, each with train.parquet
    python -m imagegen.train_painter --data FOLDER --out runs/painter
    python -m imagegen.train_painter --data FOLDER --out runs/painter --resume painting.steps=20000
    python -m imagegen.train_painter --data FOLDER --out runs/longer --base painter                         the autoencoder stays, the rest goes on
    python -m imagegen.train_painter --data FOLDER --out runs/whole --base painter --parts autoencoder,transformer
    python -m imagegen.train_painter --data FOLDER --out runs/sharper --base painter --parts decoder        all else stays
    python -m imagegen.train_painter --data FOLDER --out runs/truer --base painter --parts emphasis         designs count for more

Each part has its folder (loss.png, samples/, checkpoints/) under --out, and says before it starts how long it will take. The folder for
`TextToImage.from_pretrained` is OUT/transformer/model, OUT/decoder/model after --parts decoder, OUT/emphasis/model after --parts emphasis."""
import argparse
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from gencore import text_encoder
from gencore.check import ConfigError, command, in_range
from gencore.config import override
from gencore.recipe import survives
from gencore.text_encoder import TextEncoder, TextEncoderConfig, train_prompt_tokenizer
from gencore.train import Run, TrainConfig
from imagegen import dit
from imagegen.alignment import Alignment, PictureTower
from imagegen.autoencoder import Autoencoder, AutoencoderConfig
from imagegen.captioned import Captioned
from imagegen.data import DIGIT_WORDINGS, DIGITS, STYLES, Pictures, cached, caption, digits, emoji, grid, scenes, to_pil, to_unit
from imagegen.dit import DiT, DiTConfig
from imagegen.emoji_names import COMMON
from imagegen.emphasis import Lead, train_emphasis
from imagegen.reading import train_reading
from imagegen.text_to_image import DrawSettings, Painter, TextToImage, pipeline_files
from imagegen.training import train_autoencoder, train_decoder, train_prompts, train_transformer

SHOWN = ([f"a handwritten {word}" for word in DIGITS] + [f"{name}, noto style" for name in COMMON[:200:9][:17]]
         + [f"red apple, {style} style" for style in STYLES.values()]
         + ["a small red circle above a large blue square", "three green stars", "a yellow triangle left of a small black ring", "a pink cross"])
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
PARTS = ("autoencoder", "prompts", "transformer", "decoder", "emphasis")
PEOPLE = ("man", "woman", "person")
DESIGN = re.compile(rf", ({'|'.join(STYLES.values())}) style$")
RIVALS = {"noto": "twemoji", "twemoji": "noto", "openmoji": "noto", "fluent 3d": "fluent flat", "fluent flat": "noto"}      # taken for these most


@dataclass(frozen=True)
class Plan:
    """Everything that a run can be told by key=value."""
    noto: float = 4.0                                  # how often Noto's design is drawn to one of each other design
    favour: float = 6.0                                # how often a common name is drawn to a rare one
    digits: int = 20000                                # of MNIST's pictures, the first
    digit_share: float = 0.15                          # of each batch
    scene_share: float = 0.3                           # of each batch, where there are scenes
    autoencoder: AutoencoderConfig = field(default_factory=lambda: AutoencoderConfig(channels=(32, 32, 64, 96)))
    words: TextEncoderConfig = TextEncoderConfig(layers=4)       # with --base: layers that it lacks are added
    transformer: DiTConfig = DiTConfig(patch=1, layers=9)        # 64 tokens: one of 2 x 2 latents would be as large as a small shape of a scene.
                                                                 # With --base: layers that it lacks are added
    finer: bool = False                                # with --base: its transformer, of larger tokens, goes on with single latents
    autoencoding: TrainConfig = TrainConfig(steps=2400, batch=16, lr=2e-3, muon_lr=4e-3, warmup=50, decay=0.5, weight_decay=0.0, ema=0.99,
                                            precision="auto")
    decoding: TrainConfig = TrainConfig(steps=2500, batch=16, lr=1e-3, warmup=50, decay=0.7, weight_decay=0.0, ema=0.995, precision="auto",
                                        eval_every=500)
    emphasis: TrainConfig = TrainConfig(steps=600, batch=64, lr=3e-4, warmup=30, decay=0.7, weight_decay=0.0, ema=0.99, precision="auto",
                                        eval_every=200, save_every=200)
    prompts: TrainConfig = TrainConfig(steps=1200, batch=128, lr=1.5e-3, warmup=50, decay=0.5, weight_decay=0.05, precision="auto")
    reading: TrainConfig = TrainConfig(steps=600, batch=128, lr=1e-3, warmup=30, decay=0.5, weight_decay=0.0, precision="auto")
    painting: TrainConfig = TrainConfig(steps=12000, batch=64, lr=1e-3, muon_lr=2e-3, decay=0.4, weight_decay=0.02, ema=0.999,
                                        precision="auto", eval_every=500, save_every=500)

    def __post_init__(self):
        if self.prompts.accumulate > 1:
            raise ConfigError(f"prompts.accumulate should be 1, got {self.prompts.accumulate}: captions are told from the others of their batch")
        if not self.autoencoder.quant_convs:
            raise ConfigError("autoencoder.quant_convs should be true: the latents are brought to spread 1 in these convolutions")
        shares = (self.digit_share, self.scene_share)
        if min(shares) < 0 or sum(shares) >= 1:
            raise ConfigError(f"digit_share and scene_share should be 0 or more and leave some of 1 for emoji, got {shares[0]} and {shares[1]}")


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Plan, such as painting.steps=20000")
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist/ and emoji/")
    parser.add_argument("--out", type=Path, default=Path("runs/painter"))
    parser.add_argument("--base", help="a painter to go on from, by name or folder")
    parser.add_argument("--parts", help=f"with --base: what goes on, of {','.join(PARTS)} (default: transformer); decoder and emphasis go alone")
    parser.add_argument("--strength", type=float, default=0.5, help="of --parts emphasis: how far from the prompt without its design (0.5)")
    parser.add_argument("--rivals", action="store_true", help="... or in the design that it is taken for most")
    parser.add_argument("--below", type=float, default=1.0, help="... at noise levels below this (1)")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_intermixed_args()
    if args.parts and not args.base:
        parser.error("--parts needs --base: which painter's parts should go on?")
    in_range("--strength", args.strength, 0, 100)
    in_range("--below", args.below, 0.01, 1)
    args.parts = args.parts.split(",") if args.parts else ["transformer"]
    alone = {"decoder": sharpen, "emphasis": emphasise}.get(",".join(args.parts))
    if not alone and ("transformer" not in args.parts or not set(args.parts) <= set(PARTS[:3])):
        parser.error(f"--parts should hold transformer and some of {', '.join(PARTS[:2])}, or be decoder or emphasis alone, "
                     f"got {','.join(args.parts)}")
    plan = override(Plan(), args.settings)
    sets = read(args.data, args.out / "cache", plan)
    (alone or train)(plan, sets, args)


@dataclass(frozen=True, eq=False)
class Sets:
    """What is learnt from: three lots of Pictures; there may be no scenes."""
    emoji: Pictures
    digits: Pictures
    scenes: Pictures


def read(folder, cache, plan):
    """The data folder -> Sets."""
    written = cached(cache, "mnist", lambda: digits(folder / "mnist"), source=folder / "mnist" / "train.parquet")
    if (folder / "scenes").is_dir():
        composed = scenes(folder / "scenes")
    else:
        print(f"{folder} has no scenes/ (multimodal.scenes writes them): emoji and digits alone")
        composed = Pictures(torch.empty(0, 3, 64, 64, dtype=torch.uint8), [])
    drawn = cached(cache, "emoji", lambda: emoji(folder / "emoji"), source=folder / "emoji" / "train.parquet")
    return Sets(drawn, Pictures(written.pixels[:plan.digits], written.rows[:plan.digits]), composed)


def train(plan, sets, args):
    """The parts, one after another; with --base those that are asked for."""
    def run(part, *, sample=None, export=None):
        return Run(args.out / part, args.resume, extend=True, card={"title": f"Painter: {part}"}, sample=sample, export=export)

    torch.manual_seed(0)
    everything = captioned(sets, digits=0.1, scenes=0.2)
    if args.base:
        before = TextToImage.from_pretrained(args.base)
        painter, tokenizer, shift = before.painter, before.tokenizer, before.shift
        painter.transformer = dit.finer(painter.transformer) if plan.finer else painter.transformer
        if plan.transformer.layers > painter.transformer.cfg.layers:
            painter.transformer = dit.deeper(painter.transformer, plan.transformer.layers)
        painter.transformer.requires_grad_(True)                # what is loaded is at rest
        parts = args.parts
        if plan.words.layers > painter.text_encoder.cfg.layers:
            painter.text_encoder = text_encoder.deeper(painter.text_encoder, plan.words.layers)
        painter.text_encoder.requires_grad_("prompts" in parts)         # else only a new tower is taught: the encoder has drawn
        painter.autoencoder.requires_grad_("autoencoder" in parts)
    else:
        tokenizer = train_prompt_tokenizer(vocabulary(sets), plan.words.vocab, length=32)
        encoder = TextEncoder(override(plan.words, [f"vocab={len(tokenizer)}"]))
        painter, shift = Painter(DiT(plan.transformer), encoder, Autoencoder(plan.autoencoder)), 1.0
        parts = ["autoencoder", "prompts", "transformer"]
    if "autoencoder" in parts:
        train_autoencoder(painter.autoencoder, everything, plan.autoencoding, run=run("autoencoder"))
    torch.manual_seed(1)                                                # anew for each part: one that was stopped between two ends alike
    alignment = train_prompts(Alignment(painter.text_encoder, PictureTower()), tokenizer, everything, plan.prompts, run=run("prompts"))
    if everything.words:
        torch.manual_seed(2)
        train_reading(painter.text_encoder, tokenizer, everything, plan.reading, run=run("reading"))

    sample, export = shown_and_exported(tokenizer, shift)
    torch.manual_seed(3)
    learnt_from, run = chosen(plan, sets), run("transformer", sample=sample, export=export)
    train_transformer(painter, alignment.tower, tokenizer, learnt_from, config=plan.painting, run=run)


def shown_and_exported(tokenizer, shift):
    """-> (sample, export) of a Run whose model has a painter."""
    def sample(model, folder, step):
        pictures = TextToImage(model.painter, tokenizer, shift=shift).draw(SHOWN, range(len(SHOWN)), DrawSettings(steps=12))
        to_pil(grid(pictures, 9)[None])[0].save(folder / f"{step:06d}.png")

    return sample, lambda model: pipeline_files(model.painter, tokenizer, shift=shift, dtype=torch.bfloat16)


def chosen(plan, sets):
    """What the transformer learns from."""
    return captioned(sets, digits=plan.digit_share, scenes=plan.scene_share, favour=plan.favour, noto=plan.noto, flags=False)


def emphasise(plan, sets, args):
    """A painter's transformer, so that the design that is asked for counts for more."""
    before = TextToImage.from_pretrained(args.base)
    sample, export = shown_and_exported(before.tokenizer, before.shift)
    run = Run(args.out / "emphasis", args.resume, extend=True, card={"title": "Painter: emphasis"}, sample=sample, export=export,
              plan={"strength": args.strength, "below": args.below, "rivals": args.rivals})
    lead = Lead(in_rival_design if args.rivals else without_design, args.strength, args.below)
    train_emphasis(before.painter, before.tokenizer, chosen(plan, sets), lead, config=plan.emphasis, run=run)


def without_design(text):
    """"apple, fruit, noto style" -> "apple, fruit"."""
    return DESIGN.sub("", text)


def in_rival_design(text):
    """"apple, fruit, noto style" -> "apple, fruit, twemoji style". What has a skin tone stays: away from another design's skin, tones shift."""
    return text if "skin tone" in text else DESIGN.sub(lambda found: f", {RIVALS[found[1]]} style", text)


def sharpen(plan, sets, args):
    """A painter's decoder alone."""
    before = TextToImage.from_pretrained(args.base)
    dtype = torch.bfloat16 if survives(before.painter, torch.bfloat16) else torch.float32             # all else stays, to the bit
    some = captioned(sets, digits=0.1, scenes=0.2, favour=2.0, noto=2.0, flags=False)
    shown = to_unit(some.pixels[some.draw(24, np.random.default_rng(0))])

    def sample(model, folder, step):
        pairs = torch.cat((shown, model.decode(model.encode(shown)[0]).clamp(-1, 1)))
        to_pil(grid(pairs, 12)[None])[0].save(folder / f"{step:06d}.png")

    run = Run(args.out / "decoder", args.resume, extend=True, card={"title": "Painter: decoder"}, sample=sample,
              export=lambda model: pipeline_files(before.painter, before.tokenizer, shift=before.shift, dtype=dtype))
    train_decoder(before.painter.autoencoder, some, plan.decoding, run=run)


def captioned(sets, *, digits, scenes, favour=1.0, noto=1.0, flags=True):
    """Sets -> Captioned. A concept that has n tones and genders counts as n ** 0.75 others; signs and flags count less, scenes of one thing half.

    digits, scenes: their shares of a batch; favour: how often a common name comes to a rare one; noto: how often that design comes to each other."""
    drawn = sets.emoji if flags else sets.emoji.where(lambda row: row["group"] != "Flags")
    scenes = scenes if len(sets.scenes) else 0.0
    copies = Counter((row["concept"], row["style"]) for row in drawn.rows)
    less = {"Symbols": 0.5, "Flags": 0.3}
    weights = np.array([less.get(row["group"], 1.0) * (favour if row["name"] in COMMON else 1.0) * (noto if row["style"] == "noto" else 1.0)
                        / copies[row["concept"], row["style"]] ** 0.25 for row in drawn.rows])
    cells = torch.stack([cells_of(row) for row in sets.scenes.rows]) if len(sets.scenes) else torch.empty(0, 3, 8, 8, dtype=torch.int8)
    several = np.array([2.0 if things_in(words_of(row["words"][0])) > 1 else 1.0 for row in sets.scenes.rows])
    weights = np.concatenate((weights / weights.sum() * (1 - digits - scenes), np.full(len(sets.digits), digits / max(1, len(sets.digits))),
                              several * scenes / max(1.0, several.sum())))
    rows = [*drawn.rows, *sets.digits.rows, *sets.scenes.rows]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(map(thing, rows)))}
    pixels = torch.cat((drawn.pixels, sets.digits.pixels, sets.scenes.pixels))
    keys = [toneless(row) or i for i, row in enumerate(rows)]
    kinds = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    unknown = torch.full((len(rows) - len(cells), 3, 8, 8), -1, dtype=torch.int8)
    return Captioned(pixels, lambda i, rng: caption(rows[i], rng), torch.tensor([numbers[thing(row)] for row in rows]), weights,
                     torch.cat((unknown, cells)) if len(cells) else None, torch.tensor([kinds[key] for key in keys]),
                     {text: words_of(words) for row in sets.scenes.rows for text, words in zip(row["captions"], row["words"])})


def cells_of(row):
    """A row of a scene -> its cells (3,8,8): shape, colour and size of what lies there."""
    return torch.frombuffer(bytearray(row["cells"]), dtype=torch.int8).view(3, 8, 8)


def words_of(words):
    """Bytes -> (words, 5): shape, colour, size, count and place of the thing that each word of a caption describes."""
    return torch.frombuffer(bytearray(words), dtype=torch.int8).view(-1, 5)


def things_in(words):
    """What the words of a caption are about -> how many things it names."""
    described = words[words[:, 0] >= 0].unique(dim=0)
    return int((described[:, 3] + 1).sum())


def thing(row):
    """A row -> what it shows: two pictures of one thing answer the same caption."""
    if "captions" in row:
        return row["captions"][0]
    return (row["concept"], row["gender"], row["skin_tone"], row["style"]) if "concept" in row else row["label"]


def toneless(row):
    """A row of an emoji -> what it shows but for the skin tone; None of a digit or a scene."""
    return (row["concept"], row["gender"], row["style"]) if "concept" in row else None


def vocabulary(sets):
    """Texts for the tokenizer: every name and keyword once or a few times, so that the words of things become tokens, not those of people."""
    drawn = sets.emoji
    names = {row["concept"]: row["name"].split(":")[0] for row in drawn.rows if row["skin_tone"] == "none" and row["group"] != "Flags"}
    texts = [f"{name}, {style} style" for name in sorted(set(names.values())) for style in list(STYLES.values())[:2]]
    texts += [name for name in COMMON for _ in range(8)] + sorted({row["name"] for row in drawn.rows if row["group"] == "Flags"})
    texts += [wording.format(word=word, figure=i) for wording in DIGIT_WORDINGS for i, word in enumerate(DIGITS)]
    texts += [f"{tone} skin tone, {who}" for tone in TONES for who in PEOPLE for _ in range(20)]
    texts += [text for row in sets.scenes.rows[:1000] for text in row["captions"][:1]]
    return texts + sorted({word for row in drawn.rows for word in row["keywords"] if row["group"] != "Flags"})


if __name__ == "__main__":
    main()
