"""What the codec is trained on: distances of spectra at several scales, and an adversarial finish of the decoder alone.

Losses in the form of `gencore.train.fit`: loss(model, batch, generator) -> (sum over clips, number of clips)."""
import torch
import torch.nn.functional as F
from torch import nn

from audiogen.mel import mel_matrix
from gencore.check import ConfigError

SCALES = (64, 128, 256, 512, 1024)      # window lengths of the spectral distances


class SpectralDistance(nn.Module):
    """Two waveforms (B,L) -> mean distance (): spectral convergence + log magnitudes (Yamamoto et al. 2020), and 2 x mel L1."""

    def __init__(self, sample_rate, bands=(16, 40, 64)):
        super().__init__()
        for size in SCALES:
            self.register_buffer(f"window{size}", torch.hann_window(size), persistent=False)
        for size, band in zip(SCALES[-3:], bands):
            self.register_buffer(f"mel{size}", mel_matrix(band, size, sample_rate), persistent=False)

    def forward(self, made, real):
        both, total, B = torch.cat([made, real]), 0.0, len(real)
        for size in SCALES:
            window = self.get_buffer(f"window{size}")
            spectrum = torch.stft(both, size, size // 4, window=window, pad_mode="constant", return_complex=True)
            # The floor keeps gradients of near-silent bins from taking over.
            power = spectrum.real.square() + spectrum.imag.square()               # (2B, F, T)
            fake, true = power.clamp(min=1e-6).sqrt().split(B)                    # (B, F, T) each, floor 1e-3
            convergence = (true - fake).norm(dim=(1, 2)) / true.norm(dim=(1, 2)).clamp(min=1e-3)
            total = total + convergence.mean() + (true.log() - fake.log()).abs().mean()
            if size in SCALES[-3:]:
                mel = self.get_buffer(f"mel{size}").T                             # (P, F)
                total = total + 2 * ((mel @ true).clamp(min=1e-3).log() - (mel @ fake).clamp(min=1e-3).log()).abs().mean()
        return total


class CodecTraining(nn.Module):
    """The codec and its distance, as one model for `fit`."""

    def __init__(self, codec):
        super().__init__()
        self.codec = codec
        self.distance = SpectralDistance(codec.cfg.sample_rate)


def check_training(cfg, window, training):
    """ConfigError for pieces of `window` samples that a codec of this CodecConfig can't rebuild, or a TrainConfig that teaches no codebook."""
    if window < 1 or window % cfg.hop:
        raise ConfigError(f"window should be a multiple of codec.hop, {cfg.hop}, got {window}")
    if training.steps <= cfg.quantize.warmup or training.accumulate > 1:                  # codebooks move at each part of a step
        raise ConfigError(f"steps should be more than codec.quantize.warmup, {cfg.quantize.warmup}, after which codebooks begin to learn, and "
                          f"accumulate 1; got {training.steps} and {training.accumulate}")


def codec_loss(model, batch, generator):
    """batch["waveform"] (B,1,L): spectral distance + 0.25 x commitment, summed over clips."""
    waveform = batch["waveform"]
    made, quantized = model.codec(waveform, generator)
    loss = model.distance(made[:, 0], waveform[:, 0]) + 0.25 * quantized.commitment
    return loss * len(waveform), len(waveform)


class Discriminator(nn.Module):
    """waveform (B,L) -> (scores (B,F',T), features of every layer): convolutions over a complex STFT of compressed magnitude."""

    def __init__(self, size, channels=(16, 24, 32)):
        super().__init__()
        self.size = size
        sizes = (2, *channels)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, (5, 3), stride=(2, 1), padding=(2, 1)) for a, b in zip(sizes, sizes[1:]))
        self.score = nn.Conv2d(channels[-1], 1, 3, padding=1)
        self.register_buffer("window", torch.hann_window(size), persistent=False)

    def forward(self, waveform):
        spectrum = torch.stft(waveform, self.size, self.size // 4, window=self.window, pad_mode="constant", return_complex=True)
        parts = torch.view_as_real(spectrum).permute(0, 3, 1, 2)                  # (B, 2, F, T)
        x = parts * (parts.square().sum(1, keepdim=True) + 1e-6) ** -0.35         # magnitude to the power 0.3, phase kept
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)                                       # (B, D, F / 2, T)
            features.append(x)
        return self.score(x), features


class DecoderFinish(nn.Module):
    """Codec and discriminators as one model for `fit`; encoder and codebooks are frozen, so that codes keep their meaning."""

    def __init__(self, codec, sizes=(128, 256, 512)):
        super().__init__()
        self.codec = codec
        self.distance = SpectralDistance(codec.cfg.sample_rate)
        self.discriminators = nn.ModuleList(Discriminator(size) for size in sizes)
        for frozen in (codec.encoder, codec.quantizer):
            frozen.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.codec.encoder.eval()
        self.codec.quantizer.eval()                                               # no moving averages either
        return self


def finish_loss(model, batch, generator):
    """Spectral distance + 0.15 x adversarial (hinge) + feature matching for the decoder, hinge for the discriminators, in one sum.

    One backward serves both sides: the decoder is judged by copies of the discriminators that get no gradient."""
    real = batch["waveform"][:, 0]                                                # (B, L)
    made = model.codec(batch["waveform"])[0][:, 0]                                # (B, L)
    loss = model.distance(made, real)
    for judge in model.discriminators:
        real_score, real_features = judge(real)
        made_score, _ = judge(made.detach())
        loss = loss + F.relu(1 - real_score).mean() + F.relu(1 + made_score).mean()
        frozen = {name: p.detach() for name, p in judge.named_parameters()}
        score, features = torch.func.functional_call(judge, frozen, (made,))
        loss = loss - 0.15 * score.mean()
        for a, b in zip(features, real_features):
            loss = loss + (a - b.detach()).abs().mean() / b.detach().abs().mean() / len(features)
    return loss * len(real), len(real)
