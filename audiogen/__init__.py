"""Sound: a clip as a value, a codec that turns it into codes, and voices that speak."""

import gencore  # noqa: F401  (its torchaudio guard stands before torchaudio)
from gencore.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"Audio": "audio", "Codec": "codec", "TextToSpeech": "speech"})
