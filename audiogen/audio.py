"""A sound as a value: samples, sample rate and how it was made. Reads and writes WAV and FLAC, resamples, plays in notebooks, draws."""
import base64
import io
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audiogen.mel import LogMel
from gencore.check import InputError, dims, whole
from gencore.folder import writing
from gencore.metadata import wav_with_comment
from gencore.sounds import SAMPLES, long_comment, read_sound

FASTEST = 1_000_000         # Hz that `resample` makes
KERNEL = 4_000_000          # numbers in a filter of torchaudio's at most: it keeps one for every phase between two rates
LONGEST = 600.0             # seconds that `load` takes; longer files are refused before they are decoded
CHANNELS = 8                # at most
FLAC = 655_350              # Hz that a FLAC can say
FORMATS = {".wav": "WAV", ".flac": "FLAC"}


@dataclass(frozen=True, eq=False)
class Audio:
    """waveform (C,L) float in [-1, 1] at `sample_rate` Hz; `recipe` says how it was made, when a model here made it."""
    waveform: torch.Tensor
    sample_rate: int
    recipe: object = None

    def __post_init__(self):
        waveform = samples(self.waveform).cpu()
        waveform = waveform[None] if waveform.ndim == 1 else waveform
        C, _ = dims("waveform", waveform, "C L")
        if not 1 <= C <= CHANNELS:
            raise InputError(f"waveform should be (channels, samples), 1 to {CHANNELS} channels, got {tuple(waveform.shape)}: transpose it, or "
                             "take some of its channels")
        object.__setattr__(self, "sample_rate", whole("sample_rate (Hz)", self.sample_rate, 1, 2 ** 31 - 1))
        object.__setattr__(self, "waveform", waveform)

    def __repr__(self):
        return f"Audio({self.seconds:.2f} s, {self.sample_rate} Hz, {len(self.waveform)} channel{'s' * (len(self.waveform) > 1)})"

    @property
    def seconds(self):
        return self.waveform.shape[1] / self.sample_rate

    @classmethod
    def load(cls, path, sample_rate=None):
        """WAV, FLAC, OGG or MP3 (a path or a file object) -> Audio, resampled when `sample_rate` is given; its recipe comes along.

        A file that was put together from several sounds has several (gencore.recipe.read); here it has none."""
        name = path if isinstance(path, (str, os.PathLike)) else getattr(path, "name", "the sound")
        start = path.tell() if hasattr(path, "tell") else 0
        waveform, rate, comment = read_sound(path, name, longest=LONGEST, samples=SAMPLES)
        audio = cls(waveform, rate, _recipe_of(comment or long_comment(path, start)))
        return audio if sample_rate is None else audio.resample(sample_rate)

    def save(self, path):
        """Writes WAV or FLAC (by the ending) with 16-bit samples and the recipe as its comment. Returns the path."""
        path = Path(path)
        if path.suffix.lower() not in FORMATS:
            raise InputError(f'{path.name}: can write {" and ".join(FORMATS)}, not "{path.suffix}"')
        encoded = self.encoded(FORMATS[path.suffix.lower()])
        with writing(path):
            path.write_bytes(encoded)
        return path

    def encoded(self, kind="WAV"):
        """The bytes of the file that `save` writes; values outside [-1, 1] are clipped."""
        import soundfile
        buffer = io.BytesIO()
        # Scaled and rounded here: libsndfile may wrap at full scale. By 32768, so that what is read and saved again is the same.
        samples = (self.waveform * 32768).round().clamp(-32768, 32767).short().T.numpy()    # (L, C)
        text = "" if self.recipe is None else self.recipe.to_json()
        if kind == "FLAC" and (self.sample_rate > FLAC or not len(samples)):
            raise InputError(f"a FLAC has samples, at most {FLAC:,} a second, got {self!r}: save it as .wav")
        with soundfile.SoundFile(buffer, "w", self.sample_rate, samples.shape[1], subtype="PCM_16", format=kind) as file:
            if text and kind == "FLAC":
                file.comment = text
            file.write(samples)
        if not text or kind == "WAV":
            return wav_with_comment(buffer.getvalue(), text) if text else buffer.getvalue()
        with soundfile.SoundFile(io.BytesIO(buffer.getvalue())) as file:
            if file.comment != text:
                warnings.warn(f"this sound's recipe has {len(text):,} bytes, more than its FLAC took: save it as .wav to keep it", stacklevel=3)
        return buffer.getvalue()

    def resample(self, sample_rate):
        """The same sound at another rate (windowed sinc)."""
        if whole("sample_rate (Hz)", sample_rate, 1, FASTEST) == self.sample_rate:
            return self
        old, new = (rate // math.gcd(self.sample_rate, sample_rate) for rate in (self.sample_rate, sample_rate))
        if old * new > KERNEL or not self.waveform.shape[1]:
            return Audio(interpolated(self.waveform, old, new), sample_rate, self.recipe)
        from torchaudio.functional import resample
        return Audio(resample(self.waveform, old, new), sample_rate, self.recipe)

    def mono(self):
        """The mean of the channels as one."""
        return self if len(self.waveform) == 1 else Audio(self.waveform.mean(0, keepdim=True), self.sample_rate, self.recipe)

    def mel(self, bands=64):
        """Natural logarithm of mel magnitudes (C,P,T), 64 ms windows every 16 ms."""
        hop = max(1, round(self.sample_rate * 0.016))
        if self.waveform.shape[1] < hop:
            raise InputError(f"{self!r} is too short for a spectrogram: expected {hop} samples or more, got {self.waveform.shape[1]}")
        return LogMel(self.sample_rate, bands, 4 * hop, hop)(self.waveform)

    def draw(self, path):
        """Writes a spectrogram as PNG, whatever the name ends in. Returns the path."""
        from matplotlib.figure import Figure
        mel = self.mono().mel()[0].numpy()
        figure = Figure(figsize=(max(2.0, min(12.0, 1 + 3 * self.seconds)), 2.4), layout="constrained")
        axes = figure.subplots()
        axes.imshow(mel, origin="lower", aspect="auto", cmap="magma", vmin=-7, vmax=max(-6, mel.max()),             # silence is black
                    extent=(0, self.seconds, 0, 64), interpolation="nearest")
        axes.set(xlabel="seconds", ylabel="mel band")
        with writing(path):
            figure.savefig(path, dpi=110, format="png")
        return Path(path)

    def _repr_html_(self):
        """A player, for notebooks."""
        data = base64.b64encode(self.encoded("WAV")).decode("ascii")
        return f'<audio controls preload="none" src="data:audio/wav;base64,{data}"></audio>'


def samples(values):
    """A tensor or array of sound -> float32 tensor, or InputError: integers, and values that are not finite."""
    try:
        if isinstance(values, np.ndarray):
            values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))            # reversed, or of another machine
        waveform = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"waveform should be a tensor or an array of floats in [-1, 1], got {type(values).__name__}") from None
    if not waveform.is_floating_point():
        raise InputError(f"waveform should hold floats in [-1, 1], got {waveform.dtype}: divide 16-bit samples by 32768")
    waveform = waveform.detach().float()
    if not waveform.isfinite().all():
        raise InputError("waveform holds values that are not finite")
    return waveform


def interpolated(waveform, old, new, *, zeros=6, rolloff=0.99):
    """waveform (C,L) at `old` -> (C, L * new / old) at `new`: torchaudio's windowed sinc, its weights computed for each sample anew.

    For rates with no common measure (44101 Hz to 8000), where a filter for every phase would take gigabytes."""
    C, L = waveform.shape
    count, cut = -(-L * new // old), min(1.0, new / old) * rolloff                           # cut: of the old samples' rate
    reach = math.ceil(zeros / cut)
    near = torch.arange(-reach, reach + 1)                                                   # (R,)
    padded, made = torch.nn.functional.pad(waveform, (reach, reach + 1)), []
    for places in torch.arange(count).split(max(1, 2 ** 20 // len(near))):
        whole_places = places * old // new                                                   # (M,) the old sample at or before each
        t = (near - (places * old % new / new).double()[:, None]) * cut                      # (M, R) in zero crossings
        window = torch.cos(t.clamp(-zeros, zeros) * (math.pi / zeros / 2)).square()
        weights = (torch.sinc(t) * window * cut).float()
        made.append((padded[:, whole_places[:, None] + near + reach] * weights).sum(-1))     # (C, M)
    return torch.cat(made, 1) if made else waveform


def _recipe_of(comment):
    """The recipe in a file's comment, or None."""
    if not comment.startswith("{"):
        return None
    from gencore.recipe import Recipe
    try:
        return Recipe.from_json(comment)
    except ValueError:
        return None


def loudness(waveform, sample_rate):
    """waveform (L,) -> RMS over its active 10 ms frames, those within 40 dB of the loudest."""
    frame = max(1, sample_rate // 100)
    count = max(1, len(waveform) // frame)
    power = waveform[:count * frame].reshape(count, -1).square().mean(-1)                  # (frames,)
    return float(power[power >= 1e-4 * power.max()].mean().sqrt()) if len(waveform) else 0.0


def level(waveform, sample_rate, target=0.1):
    """waveform (L,) -> the same at loudness `target`, with peaks held below 0.95; silence stays silence."""
    rms = loudness(waveform, sample_rate)
    if rms < 1e-6:
        return waveform
    return waveform * min(target / rms, 0.95 / float(waveform.abs().max()))
