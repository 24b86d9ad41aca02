"""Training a captioner from nothing on pictures with captions: tokenizer, model, batches, evaluation, samples, pretrained folder."""
import textwrap
from dataclasses import dataclass, field, replace

import torch

from gencore.check import DataError
from gencore.data import Batches
from gencore.tokenizer import train_bpe
from gencore.train import TrainConfig, fit
from multimodal.caption import Captioner, greedy, pretrained_files
from multimodal.data import VARIATION_DRAWS, CaptionBatchRows, collate, vary
from multimodal.evaluate import name_figures, share, tone_of
from multimodal.splice import SpliceConfig, Spliced, caption_loss
from multimodal.vision import VisionConfig

SPECIALS = ("</s>", "<pad>", "<image>")


@dataclass(frozen=True)
class LearnConfig:
    """Shape of a captioner and its training; the defaults are those of the shipped reader."""
    vision: VisionConfig = field(default_factory=lambda: VisionConfig(layers=4))
    vocab: int = 1536                  # tokens of the captions' tokenizer, at most
    width: int = 192                   # D of the language model
    layers: int = 2
    heads: int = 6                     # N
    mlp: int = 384                     # width inside the gated MLP
    longest: int = 32                  # tokens of a caption, at most
    check_rows: int = 500              # test rows that are read at an evaluation
    training: TrainConfig = field(default_factory=lambda: TrainConfig(
        steps=4000, batch=64, lr=2e-3, muon_lr=2e-3, warmup=100, decay=0.5, weight_decay=0.05, ema=0.998, precision="auto", eval_every=500,
        save_every=250, threads=1))


def learn(train, test, config, *, run):
    """Lists of CaptionRows to train and to judge by -> Captioner. `run`: a gencore Run, whose evaluate, sample and export are made here."""
    captions = sorted({caption for part in train for caption in part.captions})
    if not captions:
        raise DataError("no captions: nothing to learn")
    tokenizer = train_bpe(captions, config.vocab, specials=SPECIALS, length=config.vision.patches + config.longest)
    torch.manual_seed(config.training.seed)
    model = Spliced(SpliceConfig(config.vision, vocab=len(tokenizer), width=config.width, layers=config.layers, heads=config.heads,
                                 mlp=config.mlp, context=config.vision.patches + config.longest, image_token=tokenizer.id("<image>")))
    rows = CaptionBatchRows(train, lambda caption: words_of(tokenizer, caption), model.cfg.image_token,
                            patches=config.vision.patches, longest=config.longest, seed=config.training.seed)
    judge = Judge(test, tokenizer, config)
    batches = Batches(rows, config.training.batch, seed=config.training.seed, collate=collate)
    run = replace(run, evaluate=judge.evaluate, sample=judge.sample, export=lambda m: pretrained_files(m, tokenizer, torch.bfloat16))
    fit(model, caption_loss, batches, config.training, run=run)
    return Captioner(model, tokenizer)


def words_of(tokenizer, caption):
    """A caption -> its ids and the end; one that holds a special token would end, or be a picture, in its middle."""
    ids, special = tokenizer.encode(caption), tokenizer.control_tokens()
    if found := [text for text, number in special.items() if number in ids]:
        raise DataError(f'the caption "{caption[:60]}" holds {found[0]}, which is a sign of the model\'s own: write it in another way')
    return [*ids, tokenizer.eos_id]


class Judge:
    """Some of the test rows, and what a model makes of them."""

    def __init__(self, test, tokenizer, config):
        self.tokenizer, self.longest = tokenizer, config.longest
        self.parts = [self._some(part, config.check_rows // len(test)) for part in test]

    @staticmethod
    def _some(part, count):
        """(pictures (n,3,H,W), captions): the same rows each time."""
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(part), generator=generator)[:max(1, count)].tolist()
        pictures, captions = zip(*(part[i] for i in chosen))
        return as_they_are(torch.stack(pictures)), list(captions)

    def read(self, model, pictures):
        """pictures (n,3,H,W) -> captions."""
        return [self.tokenizer.decode(row) for some in pictures.split(64)
                for row in greedy(model, some, self.tokenizer.eos_id, longest=self.longest)]

    def evaluate(self, model):
        """Share of captions read word by word; of emoji names the shares of name_figures as well."""
        figures = {}
        for number, (pictures, captions) in enumerate(self.parts):
            read = self.read(model, pictures)
            figures["exact" + (f"_{number}" if number else "")] = share(r == c for r, c in zip(read, captions))
            if any(tone_of(caption) != "none" for caption in captions):
                figures |= name_figures(read, captions)
        return figures

    def sample(self, model, folder, step):
        """Draws test pictures with what was read (and what they show, where that differs) into <step>.png."""
        from matplotlib.figure import Figure
        each = max(1, 16 // len(self.parts))
        pictures = torch.cat([pictures[:each] for pictures, _ in self.parts])
        captions = [caption for _, captions in self.parts for caption in captions[:each]]
        figure = Figure(figsize=(10, 10), layout="constrained")
        for i, (picture, read) in enumerate(zip(pictures, self.read(model, pictures))):
            axes = figure.add_subplot(4, 4, i + 1)
            axes.imshow((picture.permute(1, 2, 0) + 1) / 2)
            title, colour = (read, "black") if read == captions[i] else (f"{read}\n({captions[i]})", "firebrick")
            axes.set_title("\n".join(textwrap.fill(line, 30) for line in title.split("\n")), fontsize=7, color=colour,
                           parse_math=False)
            axes.axis("off")
        figure.savefig(folder / f"{step:06d}.png", dpi=80)


def as_they_are(pictures):
    """RGBA (B,4,H,W) uint8 -> (B,3,H,W) in [-1,1] on white, not varied."""
    return vary(pictures, torch.zeros(len(pictures), VARIATION_DRAWS))
