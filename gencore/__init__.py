"""The core that text, pictures, sound and the bridges between them stand on."""

from gencore import torchaudio_guard
from gencore.lazy import lazy

torchaudio_guard.install()                            # before anything imports transformers or diffusers

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy(__name__, {
    "CommonthreadError": "check", "InputError": "check", "UnknownNameError": "check", "ConfigError": "check", "CheckpointError": "check",
    "DataError": "check", "attend": "attention", "Attention": "attention", "CrossAttention": "attention", "AdditiveAttention": "attention",
    "Transformer": "transformer", "TransformerConfig": "transformer", "Cache": "cache", "RollingCache": "cache",
    "fit": "train", "TrainConfig": "train", "Run": "train", "Recipe": "recipe", "replay": "recipe",
})
