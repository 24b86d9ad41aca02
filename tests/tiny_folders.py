"""One tiny saved folder of each kind of model, for tests of what a folder may hold."""
import torch

from audiogen import Codec, TextToSpeech
from audiogen.codec import CodecConfig
from audiogen.lm import TokenModel, TokenModelConfig
from audiogen.speech import SpeechConfig
from gencore.attention import AttentionConfig
from gencore.layers import MLPConfig
from gencore.positions import RotaryConfig
from gencore.quantize import QuantizeConfig
from gencore.text_encoder import TextEncoder, TextEncoderConfig, train_prompt_tokenizer
from gencore.tokenizer import train_bpe
from gencore.transformer import TransformerConfig
from imagegen import GAN, Autoencoder, ControlledTextToImage, Diffusion, TextToImage, TinyAutoencoder, VQAutoencoder
from imagegen.autoencoder import AutoencoderConfig
from imagegen.class_dit import ClassDiT, ClassDiTConfig
from imagegen.control import Control, ControlConfig
from imagegen.dit import DiT, DiTConfig
from imagegen.gan import GANConfig, Generator
from imagegen.text_to_image import Painter
from imagegen.tiny_autoencoder import TinyAutoencoderConfig
from imagegen.vq_autoencoder import VQAutoencoderConfig
from multimodal import Captioner
from multimodal.splice import SpliceConfig, Spliced
from multimodal.vision import VisionConfig
from textgen import CausalLM
from textgen.model import CausalLMConfig

STACK = TransformerConfig(width=16, layers=2, attention=AttentionConfig(heads=2), mlp=MLPConfig(24, True, "silu"), rotary=RotaryConfig())
OPENERS = {cls.__name__: cls for cls in (CausalLM, TextToImage, Autoencoder, TinyAutoencoder, VQAutoencoder, GAN, Diffusion, ControlledTextToImage,
                                         Codec, TextToSpeech, Captioner)}


def novelist():
    tokenizer = train_bpe(["a dark night"], 262)
    return CausalLM(CausalLMConfig(vocab=262, context=48, transformer=STACK, bos=0, eos=(0,), pad=1), tokenizer)


def painter():
    parts = Painter(DiT(DiTConfig(channels=3, size=4, width=24, layers=2, heads=2, captions=20, out_channels=3)),
                    TextEncoder(TextEncoderConfig(vocab=262, width=20, heads=2, head_width=8, mlp=30)),
                    autoencoder())
    return TextToImage(parts, train_prompt_tokenizer(["a seven"] * 4, 262, length=12))


def autoencoder():
    return Autoencoder(AutoencoderConfig(channels=(4, 8), latent=3, groups=2, size=8))


def fast():
    return TinyAutoencoder(TinyAutoencoderConfig(latent=3, encoder=(4, 4), encoder_blocks=(1, 1), decoder=(4, 4), decoder_blocks=(1, 1)))


def quantized():
    return VQAutoencoder(VQAutoencoderConfig(AutoencoderConfig(channels=(4, 8), latent=3, groups=2, size=8), codes=8, width=3))


def gan():
    return GAN(Generator(GANConfig(size=8, widths=(8, 8), latent=6, attention=4, heads=2, labels=("left", "right"))))


def diffusion():
    denoiser = ClassDiT(ClassDiTConfig(channels=3, out_channels=6, size=4, width=8, layers=2, heads=2, classes=2))
    return Diffusion(denoiser, autoencoder(), labels=("left", "right"))


def controlled():
    inside = painter()
    return ControlledTextToImage(inside, Control.beside(ControlConfig(copied=1, stem=4), inside.painter))


def lively_painter(prompts):
    """A painter of 16x16 whose every weight matters, so that prompt, noise and step show in what it draws."""
    torch.manual_seed(0)
    tokenizer = train_prompt_tokenizer(prompts * 4, 300, length=12)
    transformer = DiT(DiTConfig(channels=3, size=4, width=24, layers=2, heads=2, captions=20, out_channels=3))
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return TextToImage(Painter(transformer, TextEncoder(TextEncoderConfig(vocab=300, width=20, heads=2, head_width=8, mlp=30)),
                               Autoencoder(AutoencoderConfig(channels=(4, 8, 8), latent=3, groups=2, size=16))), tokenizer)


def saved_painter(folder, prompts):
    """A lively painter in a folder of its own there -> the folder."""
    lively_painter(prompts).save_pretrained(folder / "tiny")
    return folder / "tiny"


def codec():
    return Codec(CodecConfig(width=8, mels=16, window=256, encoder_blocks=1, decoder_blocks=1,
                             quantize=QuantizeConfig(width=4, books=2, codes=8)))


def speaker():
    cfg = TokenModelConfig(words=("yes", "no"), voices=("ann",), books=2, codes=8, longest=12, weights=(2.0, 1.0), transformer=STACK)
    return TextToSpeech(SpeechConfig(cfg), TokenModel(cfg), codec())


def reader():
    tokenizer = train_bpe(["a red circle"], 263, specials=("</s>", "<pad>", "<image>"))
    vision = VisionConfig(image=16, patch=8, width=16, layers=2, heads=2, mlp=24)
    return Captioner(Spliced(SpliceConfig(vision, vocab=263, width=16, heads=2, mlp=24, context=40, image_token=2)), tokenizer)


def save_all(place):
    """Writes place / CausalLM, place / TextToImage, ... : folders named after the class that opens them."""
    for name, make in zip(OPENERS, (novelist, painter, autoencoder, fast, quantized, gan, diffusion, controlled, codec, speaker, reader)):
        torch.manual_seed(0)
        make().save_pretrained(place / name)
