"""A sound as a value: samples, sample rate and how it was made. Reads and writes WAV and FLAC, resamples, plays in notebooks, draws."""
import base64
import io
from dataclasses import dataclass
from pathlib import Path

import torch

from audiogen.mel import LogMel
from gencore.check import DataError, InputError, dims

LONGEST = 600.0             # seconds that `load` takes; longer files are refused before they are decoded
FORMATS = {".wav": "WAV", ".flac": "FLAC"}


@dataclass(frozen=True, eq=False)
class Audio:
    """waveform (C,L) float in [-1, 1] at `sample_rate` Hz; `recipe` says how it was made, when a model here made it."""
    waveform: torch.Tensor
    sample_rate: int
    recipe: object = None

    def __post_init__(self):
        waveform = torch.as_tensor(self.waveform)
        if not waveform.is_floating_point():
            raise InputError(f"waveform should hold floats in [-1, 1], got {waveform.dtype}: divide 16-bit samples by 32768")
        waveform = waveform.detach().float().cpu()
        waveform = waveform[None] if waveform.ndim == 1 else waveform
        C, _ = dims("waveform", waveform, "C L")
        if C > 8:
            raise InputError(f"waveform should be (channels, samples), got {tuple(waveform.shape)}: transpose it")
        if not waveform.isfinite().all():
            raise InputError("waveform holds values that are not finite")
        if isinstance(self.sample_rate, bool) or not isinstance(self.sample_rate, int) or self.sample_rate < 1:
            raise InputError(f"sample_rate should be a whole number of Hz, got {self.sample_rate!r}")
        object.__setattr__(self, "waveform", waveform)

    def __repr__(self):
        return f"Audio({self.seconds:.2f} s, {self.sample_rate} Hz, {len(self.waveform)} channel{'s' * (len(self.waveform) > 1)})"

    @property
    def seconds(self):
        return self.waveform.shape[1] / self.sample_rate

    @classmethod
    def load(cls, path, sample_rate=None):
        """WAV, FLAC, OGG or MP3 (a path or a file object) -> Audio, resampled when `sample_rate` is given; its recipe comes along."""
        waveform, rate, comment = _read(path)
        audio = cls(waveform, rate, _recipe_of(comment))
        return audio if sample_rate is None else audio.resample(sample_rate)

    def save(self, path):
        """Writes WAV or FLAC (by the ending) with 16-bit samples and the recipe as its comment. Returns the path."""
        path = Path(path)
        if path.suffix.lower() not in FORMATS:
            raise InputError(f'{path.name}: can write {" and ".join(FORMATS)}, not "{path.suffix}"')
        path.write_bytes(self.encoded(FORMATS[path.suffix.lower()]))
        return path

    def encoded(self, kind="WAV"):
        """The bytes of the file that `save` writes; values outside [-1, 1] are clipped."""
        import soundfile
        buffer = io.BytesIO()
        # Scaled and rounded here: libsndfile may wrap at full scale. By 32768, so that what is read and saved again is the same.
        samples = (self.waveform * 32768).round().clamp(-32768, 32767).short().T.numpy()    # (L, C)
        with soundfile.SoundFile(buffer, "w", self.sample_rate, samples.shape[1], subtype="PCM_16", format=kind) as file:
            if self.recipe is not None:
                file.comment = self.recipe.to_json()
            file.write(samples)
        return buffer.getvalue()

    def resample(self, sample_rate):
        """The same sound at another rate (windowed sinc)."""
        if sample_rate == self.sample_rate:
            return self
        from torchaudio.functional import resample
        return Audio(resample(self.waveform, self.sample_rate, sample_rate), sample_rate, self.recipe)

    def mono(self):
        """The mean of the channels as one."""
        return self if len(self.waveform) == 1 else Audio(self.waveform.mean(0, keepdim=True), self.sample_rate, self.recipe)

    def mel(self, bands=64):
        """Natural logarithm of mel magnitudes (C,P,T), 64 ms windows every 16 ms."""
        hop = max(1, round(self.sample_rate * 0.016))
        return LogMel(self.sample_rate, bands, 4 * hop, hop)(self.waveform)

    def draw(self, path):
        """Writes a spectrogram as PNG. Returns the path."""
        from matplotlib.figure import Figure
        figure = Figure(figsize=(max(2.0, min(12.0, 1 + 3 * self.seconds)), 2.4), layout="constrained")
        axes = figure.subplots()
        axes.imshow(self.mono().mel()[0].numpy(), origin="lower", aspect="auto", cmap="magma", vmin=-7,
                    extent=(0, self.seconds, 0, 64), interpolation="nearest")
        axes.set(xlabel="seconds", ylabel="mel band")
        figure.savefig(path, dpi=110)
        return Path(path)

    def _repr_html_(self):
        """A player, for notebooks."""
        data = base64.b64encode(self.encoded("WAV")).decode("ascii")
        return f'<audio controls preload="none" src="data:audio/wav;base64,{data}"></audio>'


def _read(path):
    """File -> (waveform (C,L), rate, comment); unreadable and over-long files are refused."""
    import soundfile
    name = path if isinstance(path, (str, Path)) else getattr(path, "name", "sound")
    try:
        with soundfile.SoundFile(path) as file:
            seconds = file.frames / file.samplerate
            if seconds > LONGEST:
                raise DataError(f"{name} is {seconds:.0f} s long, at most {LONGEST:.0f} s are read: cut it into pieces")
            return torch.from_numpy(file.read(dtype="float32", always_2d=True).T.copy()), file.samplerate, file.comment
    except FileNotFoundError:
        raise DataError(f"{name} does not exist") from None
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        if isinstance(path, (str, Path)) and not Path(path).exists():
            raise DataError(f"{name} does not exist") from None
        raise DataError(f"{name} can't be read as sound (WAV, FLAC, OGG and MP3 are known): {error}") from error


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
