"""Waveform to short-time spectra and mel bands: the parts that the codec, its losses, pictures of sound and the judges share."""
import math

import torch
import torch.nn.functional as F
from torch import nn


def mel_matrix(bands, n_fft, sample_rate):
    """(F, P): weights from n_fft // 2 + 1 frequencies to `bands` triangles, equally spaced in mel (2595 log10(1 + f/700))."""
    mel = torch.linspace(0, 2595 * math.log10(1 + sample_rate / 2 / 700), bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mel / 2595) - 1)                                        # (P + 2,) Hz
    freqs = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    rising = (freqs - edges[:-2]) / (edges[1:-1] - edges[:-2])                    # (F, P)
    falling = (edges[2:] - freqs) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


def spectrum(waveform, n_fft, hop, window):
    """waveform (B,L) -> complex (B,F,T) with T = L // hop: frame i is centred on the middle of hop i, outside is silence."""
    side = (n_fft - hop) // 2
    padded = F.pad(waveform, (side, n_fft - hop - side))
    return torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)


class LogMel(nn.Module):
    """waveform (B,L) -> natural logarithm of mel magnitudes (B,P,T), T = L // hop, never below log(floor)."""

    def __init__(self, sample_rate, bands, n_fft, hop, *, floor=1e-4):
        super().__init__()
        self.n_fft, self.hop, self.floor = n_fft, hop, floor
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("matrix", mel_matrix(bands, n_fft, sample_rate), persistent=False)

    def forward(self, waveform):
        magnitude = spectrum(waveform, self.n_fft, self.hop, self.window).abs()   # (B, F, T)
        return (self.matrix.T @ magnitude).clamp(min=self.floor).log()            # (B, P, T)
