"""The autoencoders that a denoiser draws with, told by their folders: AutoencoderKL, or AutoencoderTiny, which is faster."""
from imagegen.autoencoder import Autoencoder
from imagegen.parts import read_named
from imagegen.tiny_autoencoder import TinyAutoencoder

CODERS = {Part.layout().name: (Part.layout(), Part) for Part in (Autoencoder, TinyAutoencoder)}


def read_autoencoder(folder):
    """A folder -> Autoencoder or TinyAutoencoder, by the class that its configuration names; where it names none, Autoencoder."""
    return read_named(folder, CODERS, usual="AutoencoderKL")


def first_of(encoded):
    """What the `encode` of any autoencoder gives -> what its `decode` takes: the mean of (mean, log-variance), latents, or codes."""
    return encoded[0] if isinstance(encoded, tuple) else encoded
