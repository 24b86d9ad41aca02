"""The bridges: from a picture to words."""

import gencore  # noqa: F401  (its torchaudio guard stands before transformers)
from gencore.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"Captioner": "caption"})
