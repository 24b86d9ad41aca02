"""Train a codec and a voice on your own clips, from nothing, on a CPU.

    python examples/train_audio.py                                     notes that this script plays: minutes on one core
    python examples/train_audio.py --data FOLDER                       sound files and metadata.jsonl: file_name, text, speaker
    python examples/train_audio.py --resume                            goes on after Ctrl-C, or for longer with another speaker.steps
    python examples/train_audio.py speaker.steps=2000 codec.width=96   any field of Plan below

Three trainings one after another, each with its folder (loss.png, samples/, model/) under --out:
  codec    sound -> codes -> sound, on spectra. On the notes the loss falls from 33 to about 10.
  finish   the codec's decoder alone, against discriminators: clearer voices
  speaker  word and voice -> codes. On the notes the loss falls from 5.6 to 2.5 in 100 steps.
What was trained: TextToSpeech.from_pretrained("runs/audio/speaker/model")("rising", voice="flute")"""
import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch

from audiogen import Audio, Codec, TextToSpeech
from audiogen.codec import CodecConfig
from audiogen.codec_loss import CodecTraining, DecoderFinish, check_training, codec_loss, finish_loss
from audiogen.data import Clip, Windows, code_batches, read_clips, short_enough
from audiogen.lm import TokenModel, small_transformer, token_loss
from audiogen.speech import learnt_from, speech_files
from gencore import Run, TrainConfig, fit
from gencore.check import command
from gencore.config import override
from gencore.transformer import TransformerConfig

WAVES = {"flute": (1, 0.1), "organ": (1, 0.7, 0.5, 0.4, 0.3), "reed": (1, 0, 0.6, 0, 0.4)}      # strength of each harmonic
TUNES = {"low": (220, 220), "high": (660, 660), "rising": (300, 600), "falling": (600, 300)}              # Hz at start and end


@dataclass(frozen=True)
class Plan:
    """Everything that a run can be told by key=value."""
    codec: CodecConfig = field(default_factory=CodecConfig)
    transformer: TransformerConfig = field(default_factory=small_transformer)
    spectra: TrainConfig = TrainConfig(steps=500, batch=16, lr=8e-4, warmup=50, decay=0.8, weight_decay=0.01, clip=3.0, eval_every=250)
    finish: TrainConfig = TrainConfig(steps=80, batch=16, lr=3e-4, warmup=20, decay=0.5, weight_decay=0.01, clip=3.0, save_every=100)
    speaker: TrainConfig = TrainConfig(steps=300, batch=64, lr=1.5e-3, warmup=50, decay=0.6, weight_decay=0.05, ema=0.995, eval_every=100)
    window: int = 4096          # samples of a codec training piece
    versions: int = 6           # of each clip for the token model: other loudness, shift, speed
    longest: int = 80           # frames of the longest clip that the voice learns

    def __post_init__(self):
        check_training(self.codec, self.window, self.spectra)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Plan, such as speaker.steps=2000")
    parser.add_argument("--data", type=Path, help="audiofolder or parquet with text and speaker (default: notes made here)")
    parser.add_argument("--split", help="the rows of this split only")
    parser.add_argument("--out", type=Path, default=Path("runs/audio"), help="run folder (default: runs/audio)")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out stopped")
    args = parser.parse_intermixed_args()
    plan = override(Plan(), args.settings)
    clips = read_clips(args.data, plan.codec.sample_rate, split=args.split) if args.data else notes(plan.codec.sample_rate)
    cfg = learnt_from(clips, plan.codec.quantize, longest=plan.longest, transformer=plan.transformer)
    short_enough(clips, cfg.model, plan.codec, batch=plan.speaker.batch, versions=plan.versions)           # before the codec's long training
    train_speaker(plan, cfg, train_codec(plan, clips, args), clips, args)


def card(title, clips, args):
    """What the model card says of the data and of how it was trained; the data folder only by its own name."""
    source = args.data.name if args.data else "synthesised notes"
    options = [f"--data {source}"] * bool(args.data) + [f"--split {args.split}"] * bool(args.split) + args.settings
    return {"title": title, "Data": f"{len(clips)} clips of {source}", "Command": f"`{' '.join(['python examples/train_audio.py', *options])}`"}


def train_codec(plan, clips, args):
    """Clips -> a Codec: first on spectra, then its decoder against discriminators."""
    def sample(model, folder, step):
        for i, clip in enumerate(clips[::max(1, len(clips) // 3)][:3]):
            rebuilt = model.codec.decode(model.codec.encode(clip.waveform[None, None]))[0]
            Audio(rebuilt, plan.codec.sample_rate).save(folder / f"{step:06d}-{i}.wav")
    def trained(kind, model, loss, config):
        run = Run(args.out / kind, args.resume, export=lambda model: model.codec.files(), sample=sample,
                  card=card("Audio codec", clips, args), plan={"window": plan.window})
        return fit(model, loss, Windows(clips, plan.window, config.batch, config.seed), config, run=run).codec
    torch.manual_seed(plan.spectra.seed)
    codec = trained("codec", CodecTraining(Codec(plan.codec)), codec_loss, plan.spectra)
    torch.manual_seed(plan.finish.seed)
    return trained("finish", DecoderFinish(codec), finish_loss, plan.finish)


def train_speaker(plan, cfg, codec, clips, args):
    """Codec and clips -> a TextToSpeech folder under run/speaker/model."""
    words, voices = cfg.model.words, cfg.model.voices
    def sample(model, folder, step):
        for i, word in enumerate(words[:4]):
            clip = TextToSpeech(cfg, model, codec)(word, voices[i % len(voices)], seed=step)
            clip.save(folder / f"{step:06d}-{i}.wav")
            clip.draw(folder / f"{step:06d}-{i}.png")
    torch.manual_seed(plan.speaker.seed)
    data = code_batches(codec, clips, cfg.model, batch=plan.speaker.batch, versions=plan.versions, seed=plan.speaker.seed)
    run = Run(args.out / "speaker", args.resume, extend=True, export=lambda model: speech_files(cfg, model, codec), sample=sample,
              card=card("Voice", clips, args), plan={"versions": plan.versions})
    fit(TokenModel(cfg.model), token_loss, data, plan.speaker, run=run)


def notes(rate, each=20):
    """Clips of tunes played by three instruments, each a little different."""
    generator, clips = torch.Generator().manual_seed(0), []
    for name, (start, end) in TUNES.items():
        for voice, harmonics in WAVES.items():
            for _ in range(each):
                tune = 1 + 0.06 * torch.randn((), generator=generator)
                length = int(rate * (0.35 + 0.2 * torch.rand((), generator=generator)))
                phase = torch.linspace(start, end, length).mul(tune * 2 * torch.pi / rate).cumsum(0)
                wave = sum(strength * torch.sin((k + 1) * phase) for k, strength in enumerate(harmonics))
                shape = (torch.linspace(0, 20, length).clamp(max=1) * torch.linspace(8, 0, length).clamp(max=1))
                clips.append(Clip(0.1 * wave * shape + 0.001 * torch.randn(length, generator=generator), name, voice))
    return clips


if __name__ == "__main__":
    main()
