"""Folders of the autoencoders that a denoiser draws with, in diffusers' layouts: AutoencoderKL, or AutoencoderTiny, which is faster."""
from gencore.check import CheckpointError
from gencore.checkpoint import read_json
from imagegen.autoencoder import Autoencoder
from imagegen.families.autoencoder_kl import AUTOENCODER_KL
from imagegen.families.autoencoder_tiny import AUTOENCODER_TINY
from imagegen.parts import read_part
from imagegen.tiny_autoencoder import TinyAutoencoder

LAYOUTS = ((AUTOENCODER_KL, Autoencoder), (AUTOENCODER_TINY, TinyAutoencoder))


def read_autoencoder(folder):
    """A folder -> Autoencoder or TinyAutoencoder, by the class that its configuration names; where it names none, Autoencoder."""
    parts = {family.name: (family, Part) for family, Part in LAYOUTS}
    kind = read_json(folder / "config.json").get("_class_name", AUTOENCODER_KL.name)
    if not isinstance(kind, str) or kind not in parts:
        raise CheckpointError(f"{folder / 'config.json'}: _class_name should be {' or '.join(parts)}, got {kind!r:.80}")
    return read_part(folder, *parts[kind])


def layout_of(autoencoder):
    """Autoencoder or TinyAutoencoder -> its Family."""
    return next(family for family, Part in LAYOUTS if isinstance(autoencoder, Part))


def first_of(encoded):
    """What the `encode` of any autoencoder gives -> what its `decode` takes: the mean of (mean, log-variance), latents, or codes."""
    return encoded[0] if isinstance(encoded, tuple) else encoded
