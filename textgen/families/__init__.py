"""Architectures of transformers, each a table in a file of its own."""
import importlib

from gencore.check import unknown

KNOWN = ("gemma2", "gemma3_text", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3")


def family(name):
    """model_type of a config.json -> its Family."""
    if name not in KNOWN:
        raise unknown("model_type", name, KNOWN)
    return importlib.import_module(f"textgen.families.{name}").FAMILY
