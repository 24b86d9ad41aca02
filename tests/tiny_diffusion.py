"""Tiny denoisers and an autoencoder whose every weight matters, for tests of what draws with them."""
import torch

from imagegen.autoencoder import Autoencoder, AutoencoderConfig
from imagegen.class_dit import ClassDiT, ClassDiTConfig
from imagegen.unet import UNet, UNetConfig

CLASSES = ("circle", "square, box", "star", "heart")


def lively(model, std):
    """All weights drawn anew: parts that begin at zero say something too."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def tiny_dit(classes=4, out_channels=6):
    return lively(ClassDiT(ClassDiTConfig(channels=3, out_channels=out_channels, size=8, width=24, layers=2, heads=2, classes=classes)), 0.12)


def tiny_unet(out_channels=3, classes=None, original=False):
    heads = {"heads": 1, "head_width": None} if original else {"head_width": 4}
    return lively(UNet(UNetConfig(channels=3, out_channels=out_channels, size=8, widths=(8, 16), attention=(False, True), groups=4, layers=1,
                                  classes=classes, original=original, **heads)), 0.1)


def coder():
    """8x8 latents of 16x16 pictures."""
    return lively(Autoencoder(AutoencoderConfig(channels=(4, 8), latent=3, groups=2, size=16, scaling=0.5)), 0.2)
