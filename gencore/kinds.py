"""What a folder holds, told by what it declares: the class that can't open it says which one can."""
from pathlib import Path

from gencore.check import CheckpointError, unknown
from gencore.checkpoint import read_json

CAUSAL = ("gemma2", "gemma3_text", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3")
BY_TYPE = {name: ("a causal language model", "textgen.CausalLM") for name in CAUSAL} | {
    "bert": ("a masked language model", "textgen.MaskedLM"), "llava": ("a reader of pictures", "multimodal.Captioner"),
    "marian": ("a translator", "textgen.Seq2SeqLM"), "t5": ("an encoder-decoder", "textgen.Seq2SeqLM")}
BY_FIELDS = ((("words", "training"), "word vectors", "textgen.Word2Vec"), (("hidden", "attention"), "a translator", "textgen.AttentionSeq2Seq"),
             (("model", "codec_digest"), "a speaker", "audiogen.TextToSpeech"), (("mels", "hop"), "a codec", "audiogen.Codec"))


def kind_of(folder):
    """Folder -> (what it holds, the class that opens it), class None when nothing here does; None for a folder that declares nothing."""
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        pipeline = read_json(folder / "model_index.json").get("_class_name")
        return ("a painter", "imagegen.TextToImage") if pipeline == "PixArtAlphaPipeline" else (f"a {pipeline} of diffusers", None)
    config = read_json(folder / "config.json")
    if isinstance(config.get("model_type"), str):
        if config["model_type"] not in BY_TYPE:
            raise unknown("model_type", config["model_type"], BY_TYPE)
        return BY_TYPE[config["model_type"]]
    return next(((what, opener) for fields, what, opener in BY_FIELDS if config.keys() >= set(fields)), None)


def expect_kind(folder, *openers):
    """CheckpointError when the folder says that it holds something else than what these classes open."""
    what, opener = kind_of(folder) or ("", openers[0])
    if opener is None:
        raise CheckpointError(f"{folder} holds {what}, which {openers[0]} can't open")
    if opener not in openers:
        raise CheckpointError(f"{folder} holds {what}: open it with {opener}.from_pretrained")
