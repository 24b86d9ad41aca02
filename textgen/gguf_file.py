"""A causal model as one GGUF file, which llama.cpp and what is built on it run (format: the `gguf` package of llama.cpp).

Our folders already have transformers' names; the gguf package knows its own name for each. Llama's file stores queries and keys with
the two halves of a rotary pair side by side, since llama.cpp turns neighbours where transformers turns halves."""
import json
import os
from pathlib import Path

from gencore.check import ConfigError, InputError, nearest
from gencore.folder import writing

FAMILIES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "gpt2": "GPT2"}
TYPES = {"float32": ("F32", "ALL_F32"), "float16": ("F16", "MOSTLY_F16"), "q8_0": ("Q8_0", "MOSTLY_Q8_0"), "q4_0": ("Q4_0", "MOSTLY_Q4_0")}
CUTS = {r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*": "llama-bpe",           # what tells a rule of cutting text -> llama.cpp's name of it:
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*": "qwen2"}                    # Llama 3's and Qwen's split differ in how many digits go together
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")      # GPT-2 stores (in, out)


def save_gguf(lm, path, *, weights="float32"):
    """CausalLM with a tokenizer -> a .gguf file. weights: "float32", "float16", "q8_0" or "q4_0" (of matrices; vectors stay float32).

    llama.cpp cuts text by the rules of GPT-2, Llama 3 or Qwen, which it knows by name. GPT-2's, which it takes for any other, splits blank lines
    where train_bpe keeps them whole: give it ids for the same tokens."""
    gguf = package()
    if weights not in TYPES:
        raise InputError(f'weights should be one of {", ".join(TYPES)}, got "{weights}"{nearest(weights, TYPES)}')
    if lm.cfg.family not in FAMILIES:
        raise ConfigError(f"{lm.cfg.family} can't be written as GGUF here: {', '.join(FAMILIES)} can")
    if lm.tokenizer is None:
        raise InputError("this model has no tokenizer: CausalLM(cfg, tokenizer), or load a folder that has one")
    files, path = lm.files(), Path(path)
    architecture = gguf.MODEL_ARCH[FAMILIES[lm.cfg.family]]
    unfinished = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(unfinished, gguf.MODEL_ARCH_NAMES[architecture])
    say_shape(writer, files["config.json"], gguf.LlamaFileType[TYPES[weights][1]])
    say_tokens(writer, lm.tokenizer, lm.cfg, gguf.TokenType)
    names = gguf.get_tensor_name_map(architecture, lm.cfg.transformer.layers)
    for theirs, tensor in files["model.safetensors"].items():
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        if name is None or architecture.name == "QWEN3" and name.endswith(".bias"):
            raise ConfigError(f"GGUF's {architecture.name.lower()} has no place for {theirs}: this model has parts that llama.cpp's has not")
        values, kind = as_stored(gguf, theirs, tensor, config=files["config.json"], weights=weights)
        writer.add_tensor(name, values, raw_dtype=kind)
    with writing(path):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(unfinished, path)


def package():
    """The gguf package, or one sentence."""
    try:
        import gguf
    except ImportError as error:
        raise InputError("GGUF files need the gguf package: pip install gguf") from error
    return gguf


def say_shape(writer, config, file_type):
    """config.json of the folder -> GGUF's keys."""
    width, heads = config.get("hidden_size", config.get("n_embd")), config.get("num_attention_heads", config.get("n_head"))
    writer.add_file_type(file_type)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config.get("max_position_embeddings", config.get("n_positions")))
    writer.add_embedding_length(width)
    writer.add_block_count(config.get("num_hidden_layers", config.get("n_layer")))
    writer.add_feed_forward_length(config.get("intermediate_size", config.get("n_inner")))
    writer.add_head_count(heads)
    if config["model_type"] == "gpt2":
        if config["activation_function"] != "gelu_new" or not config["scale_attn_weights"]:
            raise ConfigError("llama.cpp's GPT-2 has GELU by its tanh and divides scores by the root of a head's width, this model has not")
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    rope = config["rope_parameters"]
    if rope.get("rope_type", "default") != "default" or config.get("sliding_window"):
        raise ConfigError("GGUF files are written here for plain rotary positions and full attention only")
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])


def say_tokens(writer, tokenizer, cfg, kinds):
    """Byte-level BPE: tokens in the order of their ids, merges, special ids."""
    engine = json.loads(tokenizer.engine.to_str())
    if engine["model"]["type"] != "BPE" or engine["model"].get("byte_fallback") or "ByteLevel" not in json.dumps(engine["decoder"]):
        raise ConfigError(f"GGUF files are written here with byte-level BPE only, this tokenizer is another {engine['model']['type']}")
    tokens = [tokenizer.engine.id_to_token(i) or f"<|unused{i}|>" for i in range(cfg.vocab)]
    special = {token["id"] for token in engine["added_tokens"] if token["special"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(next((name for cut, name in CUTS.items() if cut in cutting_rule(engine)), "gpt-2"))
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.UNUSED if i >= len(tokenizer) else kinds.CONTROL if i in special else kinds.NORMAL for i in range(cfg.vocab)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in engine["model"]["merges"]])
    writer.add_add_bos_token(cfg.bos is not None and tokenizer.encode("a", special=True)[:1] == [cfg.bos])
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
    for say, value in ((writer.add_bos_token_id, cfg.bos), (writer.add_eos_token_id, cfg.eos[0] if cfg.eos else None),
                       (writer.add_pad_token_id, cfg.pad)):
        if value is not None:
            say(value)


def cutting_rule(engine):
    """tokenizer.json as a dict -> the regular expressions that cut its text, one after another."""
    first = engine["pre_tokenizer"] or {}
    return "\n".join((part.get("pattern") or {}).get("Regex", "") for part in first.get("pretokenizers", [first]))


def as_stored(gguf, name, tensor, *, config, weights):
    """A tensor under transformers' name -> (array in GGUF's layout, its type)."""
    values = tensor.float().cpu()
    if config["model_type"] in ("llama", "mistral") and ("q_proj" in name or "k_proj" in name):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        values = values.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)                  # halves -> neighbours
    if name.endswith(TRANSPOSED) and config["model_type"] == "gpt2":
        values = values.t()
    values = values.contiguous().numpy()
    kind = gguf.GGMLQuantizationType[TYPES[weights][0]]
    block = gguf.GGML_QUANT_SIZES[kind][0]
    if values.ndim < 2 or values.shape[-1] % block or "wpe" in name:
        kind = gguf.GGMLQuantizationType.F32
    return gguf.quantize(values, kind), kind
