"""Pictures: drawn from words, by models trained here or elsewhere."""

import gencore  # noqa: F401  (its torchaudio guard stands before transformers and diffusers)
from gencore.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"TextToImage": "text_to_image", "Autoencoder": "autoencoder", "VQAutoencoder": "vq_autoencoder",
                                                 "TinyAutoencoder": "tiny_autoencoder", "Editor": "editing", "GAN": "gan",
                                                 "Diffusion": "diffusion", "PainterLoRA": "lora", "ControlledTextToImage": "control"})
