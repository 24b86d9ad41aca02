"""Spoken clips with their words and speakers, and batches of them for the codec (waveforms) and the token model (codes)."""
from typing import NamedTuple

import numpy as np
import torch

from audiogen.audio import Audio, level
from gencore.check import DataError
from gencore.data import own_rows
from gencore.data_folder import audio_folder

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Clip(NamedTuple):
    """One utterance."""
    waveform: torch.Tensor      # (L,), at the asked sample rate, at equal loudness
    text: str                   # what is said
    speaker: str                # who says it


def read_clips(folder, sample_rate, *, split=None, on_error="stop"):
    """audiofolder or parquet with text (or digit) and speaker columns -> list of Clips in the order of its rows."""
    rows = audio_folder(folder, split, text=None, on_error=on_error, check=False)
    column = next((name for name in ("text", "digit") if name in rows.columns), None)
    if column is None or "speaker" not in rows.columns:
        raise DataError(f"{folder} needs the columns text and speaker beside each sound, it has {', '.join(rows.columns)}")
    for name, words, who in zip(rows.names, rows.column(column), rows.column("speaker")):
        if words is None or who is None or not str(words).strip():
            raise DataError(f"{name} has no {'speaker' if who is None else column}: give it one, or take it out of the data")
        if column == "digit" and str(words).strip() not in map(str, range(10)):              # a CSV's are strings
            raise DataError(f"{name}: digit should be a whole number from 0 to 9, got {words!r:.80}")
    clips = []
    for row in rows.checked(on_error):
        waveform = Audio(row["audio"].mean(0), row["sample_rate"]).resample(sample_rate).waveform[0]
        text = DIGITS[int(row["digit"])] if column == "digit" else str(row["text"]).strip()
        clips.append(Clip(level(waveform, sample_rate), text, str(row["speaker"])))
    return clips


class Windows:
    """Batches for the codec: waveform (B,1,length), random pieces of random clips at random loudness; short clips lie in silence."""

    def __init__(self, clips, length, batch, seed=0):
        self.clips, self.length, self.rows, self.seed = clips, length, batch, seed

    def batch(self, step, rank=0, world=1):
        generator = seeded(self.seed, step)
        chosen = torch.randint(len(self.clips), (self.rows,), generator=generator)
        pieces = torch.stack([self._piece(self.clips[i].waveform, generator) for i in chosen.tolist()])       # (B, length)
        return {"waveform": pieces[own_rows(self.rows, rank, world), None]}

    def _piece(self, waveform, generator):
        room = len(waveform) - self.length
        start = int(torch.randint(abs(room) + 1, (), generator=generator))
        gain = 0.6 + 0.5 * torch.rand((), generator=generator)
        if room >= 0:
            return gain * waveform[start:start + self.length]
        piece = waveform.new_zeros(self.length)
        piece[start:start + len(waveform)] = gain * waveform
        return piece


def seeded(*numbers):
    """Whole numbers -> a CPU generator that is a function of them."""
    return torch.Generator().manual_seed(int(np.random.default_rng(numbers).integers(2 ** 62)))


SPEEDS = (1.0, 0.97, 1.03)      # of the versions of a clip, in turn; small enough to leave the voice its own


def coded(codec, clips, *, versions=1, seed=0):
    """Clips -> list of codes (K,T), `versions` of each clip one after another: other loudness, shift below a frame, and speed."""
    from torchaudio.functional import resample
    from tqdm import tqdm
    hop, codes = codec.cfg.hop, []
    for number, clip in enumerate(tqdm(clips, desc="coding clips", unit="clip", delay=2, leave=False)):
        generator = seeded(seed, number)
        for version in range(versions):
            waveform = clip.waveform
            if version:                                                           # the first is the clip itself
                speed = SPEEDS[version % len(SPEEDS)]
                waveform = waveform if speed == 1 else resample(waveform, round(100 * speed), 100)
                gain = 0.6 + 0.5 * torch.rand((), generator=generator)
                waveform = gain * waveform[int(torch.randint(min(hop, len(waveform)), (), generator=generator)):]
            codes.append(codec.encode(waveform[None, None])[0])
    return codes


def short_enough(clips, cfg, codec, *, batch, versions=1):
    """Clips -> those that a token model of TokenModelConfig `cfg` speaks by a codec of CodecConfig `codec`; DataError where they fill no batch."""
    most = int((cfg.longest - 1) * (min(SPEEDS) if versions > 1 else 1))                      # the slowest version has a frame for its end as well
    short = [clip for clip in clips if len(clip.waveform) <= most * codec.hop]
    if len(short) * versions < batch:
        raise DataError(f"{len(short)} of {len(clips)} clips last {most / codec.frame_rate:.1f} s at most ({most} frames); with {versions} versions "
                        f"of each they are fewer than a batch of {batch}: give more of them, or allow longer ones or a smaller batch")
    return short


def code_batches(codec, clips, cfg, *, batch, versions=1, seed=0):
    """Clips -> CodeBatches for a token model of TokenModelConfig `cfg`; clips longer than it speaks are left out."""
    short = short_enough(clips, cfg, codec.cfg, batch=batch, versions=versions)
    if len(short) < len(clips):
        print(f"left out {len(clips) - len(short)} of {len(clips)} clips, which are longer than the {cfg.longest} frames that are learnt")
    codes = coded(codec, short, versions=versions, seed=seed)
    words = [cfg.words.index(clip.text) for clip in short for _ in range(versions)]
    voices = [cfg.voices.index(clip.speaker) for clip in short for _ in range(versions)]
    return CodeBatches(codes, words, voices, batch=batch, seed=seed, filler=cfg.filler)


class CodeBatches:
    """Batches for the token model: codes (B,K,T) of clips of like length, lengths, words, voices (B,); order by (seed, epoch)."""

    def __init__(self, codes, words, voices, *, batch, seed=0, filler=0):
        self.codes, self.words, self.voices = codes, torch.as_tensor(words), torch.as_tensor(voices)
        self.lengths = torch.tensor([c.shape[1] for c in codes])
        self.rows, self.seed, self.filler, self.epoch, self.order = batch, seed, filler, None, None
        if len(codes) < batch:
            raise DataError(f"{len(codes)} clips are fewer than a batch of {batch}: give more clips or a smaller batch")

    def batch(self, step, rank=0, world=1):
        chosen = self._batches(step)[own_rows(self.rows, rank, world)]
        longest = int(self.lengths[chosen].max())
        codes = torch.full((len(chosen), len(self.codes[0]), longest), self.filler)         # (B, K, T)
        for row, i in enumerate(chosen.tolist()):
            codes[row, :, :self.lengths[i]] = self.codes[i]
        return {"codes": codes, "lengths": self.lengths[chosen], "words": self.words[chosen], "voices": self.voices[chosen]}

    def _batches(self, step):
        """Numbers of the clips of one step. Eight batches at a time are sorted by length, which wastes little."""
        count = len(self.codes) // self.rows
        epoch, place = divmod(step, count)
        if epoch != self.epoch:
            generator = seeded(self.seed, epoch)
            order = torch.randperm(len(self.codes), generator=generator)[:count * self.rows]
            order = torch.cat([part[self.lengths[part].argsort()] for part in order.split(8 * self.rows)]).view(count, self.rows)
            self.epoch, self.order = epoch, order[torch.randperm(count, generator=generator)]
        return self.order[place]
