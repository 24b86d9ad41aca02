"""Pictures <-> a small grid of numbers of code vectors: the vector-quantized autoencoder (van den Oord et al. 2017; Esser et al. 2021).

Encoder and decoder are the KL autoencoder's, the structure is diffusers' VQModel to the letter; the codebook is the core's, which follows its
vectors by moving averages."""
from dataclasses import dataclass

from torch import nn

from gencore.check import dims
from gencore.config import Size, check_fields
from gencore.quantize import QuantizeConfig, VectorQuantizer, check_codes
from imagegen.autoencoder import AutoencoderConfig, Decoder, Encoder, ResidualBlock, picture_loss
from imagegen.parts import Component, read_state


@dataclass(frozen=True)
class VQAutoencoderConfig:
    """Sizes of the two halves and of the codebook."""
    parts: AutoencoderConfig = AutoencoderConfig(latent=4)
    codes: Size = 512               # code vectors
    width: Size = 4                 # of a code vector

    def __post_init__(self):
        check_fields(self)


class VQAutoencoder(Component):
    """pictures (B,3,H,W) in [-1,1] <-> codes (B,h,w)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, C = cfg, cfg.parts.latent
        self.encoder, self.decoder = Encoder(cfg.parts, C), Decoder(cfg.parts)
        self.quant_conv = nn.Conv2d(C, cfg.width, 1)
        self.quantizer = VectorQuantizer(QuantizeConfig(width=cfg.width, codes=cfg.codes))
        self.post_quant_conv = nn.Conv2d(cfg.width, C, 1)
        for module in self.modules():
            if isinstance(module, ResidualBlock):                                      # branches begin at zero
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)

    def forward(self, pictures, generator=None):
        """-> (pictures that come back, what the quantizer says of (B,h*w,width))."""
        h = self.latents(pictures)                                                     # (B, width, h, w)
        quantized = self.quantizer(h.flatten(2).transpose(1, 2), generator)
        values = quantized.values.transpose(1, 2).reshape(h.shape)
        return self.decoder(self.post_quant_conv(values)), quantized

    def latents(self, pictures):
        """pictures -> (B,width,h,w), not quantized."""
        dims("pictures", pictures, "B C H W", C=self.cfg.parts.picture_channels)
        return self.quant_conv(self.encoder(pictures))

    def encode(self, pictures):
        """pictures -> codes (B,h,w) long."""
        h = self.latents(pictures)
        return self.quantizer.nearest(h.permute(0, 2, 3, 1).flatten(0, 2)).view(len(h), *h.shape[2:])

    def decode(self, codes):
        """codes (B,h,w) -> pictures, not clamped."""
        dims("codes", codes, "B H W")
        check_codes(codes, self.cfg.codes)
        return self.decoder(self.post_quant_conv(self.quantizer.codebook[codes].permute(0, 3, 1, 2)))

    def weights(self):
        """state_dict without what only the training of the codebook needs."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("quantizer.") or name == "quantizer.codebook"}

    def load_weights(self, weights):
        """What `weights` gives -> the model, ready to be used or trained on."""
        own = self.state_dict()
        self.load_state_dict({**{name: own[name] for name in own.keys() - weights.keys()}, **weights})
        self.quantizer.set_codebook(weights["quantizer.codebook"].clone())
        return self

    @classmethod
    def read(cls, folder):
        module, state = read_state(folder, cls.layout(), cls, own=cls.weights)
        return cls(module.cfg).load_weights(state).eval().requires_grad_(False)

    @staticmethod
    def layout():
        from imagegen.families.vq_model import VQ_MODEL
        return VQ_MODEL


def vq_loss(model, pictures, generator=None, *, commitment=0.25):
    """pictures (B,3,H,W) -> scalar: the pictures that come back against those that went in, and latents kept near their code vectors."""
    made, apart = rebuilt(model, pictures, generator, commitment=commitment)
    return picture_loss(made, pictures) + apart


def rebuilt(model, pictures, generator=None, *, commitment=0.25):
    """pictures -> (those that come back from their code vectors, commitment times the squared distance of the latents to these)."""
    made, quantized = model(pictures, generator)
    return made, commitment * quantized.commitment
