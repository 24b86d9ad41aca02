"""Spectral audio codec: log-mel -> ConvNeXt -> residual VQ -> ConvNeXt -> magnitudes and phases -> inverse STFT.

After Vocos (Siuzdak 2023: spectral head, no transposed convolutions) and SoundStream (Zeghidour et al. 2021: residual VQ)."""
import hashlib
from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from audiogen.audio import Audio, samples
from audiogen.mel import LogMel
from gencore.check import ConfigError, InputError, dims, only_device
from gencore.checkpoint import load_tensors, naming, read_json, resolve, save_folder
from gencore.config import Few, Size, Within, check_fields, from_dict, to_dict
from gencore.decode import resting
from gencore.kinds import expect_kind
from gencore.quantize import QuantizeConfig, ResidualVQ


@dataclass(frozen=True)
class CodecConfig:
    """Sizes of the codec."""
    sample_rate: Annotated[int, Within(1000, 400_000)] = 8000        # Hz
    hop: Size = 128               # samples per frame of codes
    window: Size = 512            # of the analysis and of the inverse STFT
    mels: Size = 64               # P, bands the encoder sees
    width: Size = 160             # D of the ConvNeXt blocks
    encoder_blocks: Few = 3
    decoder_blocks: Few = 4
    kernel: Few = 7               # frames a block sees
    expansion: Few = 3            # of the MLP in a block
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)

    def __post_init__(self):
        check_fields(self)
        if self.window % 2 or self.hop % 2 or 2 * self.hop > self.window:                # windows that overlap by half or more leave no holes
            raise ConfigError(f"CodecConfig.hop and window should be even, hop at most half the window, got {self.hop} and {self.window}")
        if self.kernel % 2 == 0:
            raise ConfigError(f"CodecConfig.kernel should be odd, got {self.kernel}")

    @property
    def frame_rate(self):
        return self.sample_rate / self.hop


class ConvNeXtBlock(nn.Module):
    """x (B,D,T) -> the same: depthwise convolution over time, then an MLP over width (Liu et al. 2022)."""

    def __init__(self, cfg):
        super().__init__()
        self.mix = nn.Conv1d(cfg.width, cfg.width, cfg.kernel, padding=cfg.kernel // 2, groups=cfg.width)
        self.norm = nn.LayerNorm(cfg.width)
        self.up = nn.Linear(cfg.width, cfg.expansion * cfg.width)
        self.down = nn.Linear(cfg.expansion * cfg.width, cfg.width)
        self.scale = nn.Parameter(torch.full((cfg.width,), 0.1))

    def forward(self, x):
        h = self.norm(self.mix(x).transpose(1, 2))                                # (B, T, D)
        h = self.down(F.gelu(self.up(h))) * self.scale                            # (B, T, D)
        return x + h.transpose(1, 2)                                              # (B, D, T)


class Encoder(nn.Module):
    """waveform (B,L) -> latents (B,T,Z), T = L // hop."""

    def __init__(self, cfg):
        super().__init__()
        self.mel = LogMel(cfg.sample_rate, cfg.mels, cfg.window, cfg.hop)
        self.embed = nn.Conv1d(cfg.mels, cfg.width, cfg.kernel, padding=cfg.kernel // 2)
        self.blocks = nn.Sequential(*[ConvNeXtBlock(cfg) for _ in range(cfg.encoder_blocks)])
        self.norm = nn.LayerNorm(cfg.width)
        self.out = nn.Linear(cfg.width, cfg.quantize.width)

    def forward(self, waveform):
        mel = (self.mel(waveform) + 5) / 3                                        # (B, P, T), about zero mean and unit variance
        x = self.blocks(self.embed(mel))                                          # (B, D, T)
        return self.out(self.norm(x.transpose(1, 2)))                             # (B, T, Z)


class Decoder(nn.Module):
    """latents (B,T,Z) -> waveform (B, T * hop)."""

    def __init__(self, cfg):
        super().__init__()
        self.hop, self.n_fft = cfg.hop, cfg.window
        self.embed = nn.Conv1d(cfg.quantize.width, cfg.width, cfg.kernel, padding=cfg.kernel // 2)
        self.blocks = nn.Sequential(*[ConvNeXtBlock(cfg) for _ in range(cfg.decoder_blocks)])
        self.norm = nn.LayerNorm(cfg.width)
        self.head = nn.Linear(cfg.width, cfg.window + 2)                          # log magnitude and phase of F frequencies
        self.register_buffer("window", torch.hann_window(cfg.window), persistent=False)

    def forward(self, latents):
        x = self.blocks(self.embed(latents.transpose(1, 2)))                      # (B, D, T)
        log_magnitude, phase = self.head(self.norm(x.transpose(1, 2))).float().chunk(2, -1)  # (B, T, F) each
        return self.overlap_add(torch.polar(log_magnitude.clamp(max=5).exp(), phase))

    def overlap_add(self, frames):
        """complex frames (B,T,F) -> waveform (B, T * hop); frame i is centred on the middle of hop i, as in `mel.spectrum`."""
        B, T, _ = frames.shape
        length, side = (T - 1) * self.hop + self.n_fft, (self.n_fft - self.hop) // 2
        pieces = torch.fft.irfft(frames, self.n_fft) * self.window                # (B, T, n_fft)
        fold = dict(output_size=(1, length), kernel_size=(1, self.n_fft), stride=(1, self.hop))
        total = F.fold(pieces.transpose(1, 2), **fold).view(B, length)            # (B, length)
        weight = self.window.square()[None, :, None].expand(1, -1, T)             # (1, n_fft, T)
        weight = F.fold(weight, **fold).view(1, length)                           # (1, length), the windows' sum at each sample
        keep = slice(side, side + T * self.hop)
        return total[:, keep] / weight[:, keep].clamp(min=1e-3)                   # (B, T * hop)


class Codec(nn.Module):
    """Waveform <-> codes (B,K,T): K codebooks, one frame of codes per `hop` samples."""

    def __init__(self, cfg=CodecConfig()):
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.quantizer = ResidualVQ(cfg.quantize)
        self.decoder = Decoder(cfg)

    def forward(self, waveform, generator=None):
        """waveform (B,1,L), L a multiple of hop -> (reconstruction (B,1,L), Quantized)."""
        quantized = self.quantizer(self.encoder(waveform[:, 0]), generator)       # values (B, T, Z)
        return self.decoder(quantized.values)[:, None], quantized

    @torch.no_grad()
    def encode(self, waveform):
        """waveform (B,1,L) of floats, or an Audio, at the codec's sample rate -> codes (B,K,T), T = L / hop rounded up, the rest silence."""
        if isinstance(waveform, Audio):
            if waveform.sample_rate != self.cfg.sample_rate:
                raise InputError(f"the sound has {waveform.sample_rate} Hz, this codec reads {self.cfg.sample_rate} Hz: "
                                 f"give sound.resample({self.cfg.sample_rate})")
            waveform = waveform.waveform[None]                                    # (1, C, L)
        waveform = samples(waveform)
        _, _, L = dims("waveform", waveform, "B C L", C=1)
        if L == 0:
            raise InputError("waveform is empty: the codec needs at least one sample")
        waveform = F.pad(waveform[:, 0].to(self.decoder.window.device), (0, -L % self.cfg.hop))                  # (B, T * hop)
        with resting(self):                                                       # in training codebooks move with what they see
            return self.quantizer(self.encoder(waveform)).codes

    @torch.no_grad()
    def decode(self, codes):
        """codes (B,K,T), K up to all codebooks -> waveform (B, 1, T * hop) in [-1, 1]."""
        codes = torch.as_tensor(codes)
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise InputError(f"codes should be whole numbers, as encode gives them, got {codes.dtype}")
        _, _, T = dims("codes", codes, "B K T")
        if T == 0:
            raise InputError("codes are empty: the codec needs at least one frame")
        with resting(self):
            return self.decoder(self.quantizer.lookup(codes.to(self.decoder.window.device, torch.long)))[:, None].clamp(-1, 1)

    def to(self, device):
        """Moves the codec, which computes in float32, and returns self."""
        return super().to(only_device(device))

    @classmethod
    def from_pretrained(cls, name):
        """A shipped name, a folder or a Hub id -> Codec, ready to use."""
        folder = resolve(name, "audiogen")
        expect_kind(folder, "audiogen.Codec")
        with naming(folder / "config.json"):
            cfg = from_dict(CodecConfig, read_json(folder / "config.json"))
        with torch.device("meta"), naming(folder / "config.json"):
            shapes = cls(cfg).weight_shapes()
        weights = load_tensors(folder / "model.safetensors", expect=shapes)
        codec = cls(cfg)
        codec.load_weights(weights)
        return codec.eval()

    def save_pretrained(self, folder):
        """Writes config.json and model.safetensors (bfloat16)."""
        save_folder(folder, self.files())

    def files(self):
        """The pretrained folder's files, for `save_folder`; what only training needs (moving averages) stays out."""
        weights = {name: self.state_dict()[name].to(torch.bfloat16) for name in self.weight_shapes()}
        return {"config.json": to_dict(self.cfg), "model.safetensors": weights}

    def digest(self):
        """16 hex digits that stand for all weights of a file: another codec's codes mean other sounds."""
        whole = hashlib.sha256()
        for name, tensor in sorted(self.files()["model.safetensors"].items()):
            whole.update(name.encode() + tensor.cpu().contiguous().view(torch.int16).numpy().tobytes())
        return whole.hexdigest()[:16]

    def weight_shapes(self):
        """{name: shape} of what a file holds."""
        named = [*self.named_parameters(), *((name, b) for name, b in self.named_buffers() if name.endswith(".codebook"))]
        return {name: tuple(tensor.shape) for name, tensor in named}

    def load_weights(self, weights):
        """{name: tensor} of `weight_shapes` -> into this codec; the codebooks' moving averages start from them."""
        self.load_state_dict(weights, strict=False)
        for book in self.quantizer.books:
            book.set_codebook(book.codebook.clone())
        self.quantizer.steps.fill_(self.cfg.quantize.warmup)
