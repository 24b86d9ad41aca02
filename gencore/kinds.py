"""What a folder holds, told by what it declares: the class that can't open it says which one can."""
from pathlib import Path

from gencore.check import CheckpointError, nearest
from gencore.checkpoint import read_json

CAUSAL = ("gemma2", "gemma3_text", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3")
BY_TYPE = {name: ("a causal language model", "textgen.CausalLM") for name in CAUSAL} | {            # model_type of transformers
    "bert": ("an encoder", "textgen.MaskedLM", "textgen.TextClassifier"), "llava": ("a reader of pictures", "multimodal.Captioner"),
    "marian": ("a translator", "textgen.Seq2SeqLM"), "t5": ("an encoder-decoder", "textgen.Seq2SeqLM")}
PIPELINES = {"PixArtAlphaPipeline": ("a painter", "imagegen.TextToImage")} | {                      # _class_name of diffusers
    name: ("a diffusion model of pictures", "imagegen.Diffusion") for name in ("DiTPipeline", "DDPMPipeline", "DDIMPipeline", "LDMPipeline")}
BY_FIELDS = (                                                               # our own configurations: at least two of the fields
    (("picture_channels", "latent", "blocks"), "a GAN", "imagegen.GAN"),
    (("num_encoder_blocks", "num_decoder_blocks"), "a tiny autoencoder of pictures", "imagegen.TinyAutoencoder"),    # diffusers'
    (("num_vq_embeddings", "vq_embed_dim"), "a vector-quantized autoencoder of pictures", "imagegen.VQAutoencoder"),
    (("block_out_channels", "latent_channels"), "an autoencoder of pictures", "imagegen.Autoencoder"),
    (("copied", "stem"), "a painter led by lines", "imagegen.ControlledTextToImage"),
    (("kind", "words", "training"), "word vectors", "textgen.Word2Vec"),
    (("hidden", "attention", "smoothing"), "a translator", "textgen.AttentionSeq2Seq"),
    (("model", "codec", "codec_digest"), "a speaker", "audiogen.TextToSpeech"),
    (("mels", "hop", "quantize"), "a codec", "audiogen.Codec"))


def kind_of(folder):
    """Folder -> (what it holds, the classes that open it, ...), or CheckpointError when nothing here does."""
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        pipeline = read_json(folder / "model_index.json").get("_class_name")
        if isinstance(pipeline, str) and pipeline in PIPELINES:
            return PIPELINES[pipeline]
        raise stranger(folder / "model_index.json", "_class_name", pipeline, PIPELINES)
    config = read_json(folder / "config.json")
    name = config.get("model_type")
    if isinstance(name, str) and name in BY_TYPE:
        return BY_TYPE[name]
    for fields, what, opener in BY_FIELDS:
        if len(config.keys() & set(fields)) >= 2:
            return what, opener
    raise stranger(folder / "config.json", "model_type", name, BY_TYPE)


def expect_kind(folder, opener):
    """CheckpointError when the folder says that it holds something else than what this class opens."""
    what, *openers = kind_of(folder)
    if opener not in openers:
        raise CheckpointError(f"{folder} holds {what}: open it with {' or '.join(f'{name}.from_pretrained' for name in openers)}")


def stranger(path, field, name, known):
    said = f"has no {field}" if name is None else f"says {field} {name!r:.80}{nearest(name, known)}"
    return CheckpointError(f"{path.parent} holds no model that this toolkit knows: {path.name} {said}, known are {', '.join(known)}")
