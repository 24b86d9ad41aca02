"""Architectures of transformers, each a table in a file of its own."""
import importlib

from gencore.check import CheckpointError, unknown

KNOWN = ("bert", "gemma2", "gemma3_text", "gpt2", "llama", "marian", "mistral", "phi3", "qwen2", "qwen3", "t5")


def family(name, model="CausalLM"):
    """model_type of a config.json, name of our class -> the Family that reads and writes it."""
    if name not in KNOWN:
        raise unknown("model_type", name, KNOWN)
    module = importlib.import_module(f"textgen.families.{name}")
    layouts = getattr(module, "LAYOUTS", None) or {"CausalLM": module.FAMILY}
    if model not in layouts:
        raise CheckpointError(f"a {name} model is not a {model} here: open it as {' or '.join(layouts)}")
    return layouts[model]
