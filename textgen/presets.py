"""Shapes by name, from a million parameters to GPT-3 and Llama 3, and what each needs of memory: counted on tensors without contents.

    python -m textgen.presets                          a table of all of them
    lm = CausalLM(preset("gpt2"), tokenizer)           weights that know nothing yet

Radford et al. 2019, table 2 (GPT-2); Brown et al. 2020, table 2.1 (GPT-3); Grattafiori et al. 2024, table 3 (Llama 3)."""
from dataclasses import dataclass, replace

import torch
from torch._subclasses import FakeTensorMode

from gencore.attention import AttentionConfig, head_sizes
from gencore.check import InputError, command, floating, unknown, whole
from gencore.layers import MLPConfig, NormConfig
from gencore.positions import RotaryConfig
from gencore.transformer import TransformerConfig
from textgen.model import CausalLM, CausalLMConfig


def llama_shape(width, layers, heads, mlp, *, vocab=8192, context=512):
    """Rotary positions, RMSNorm, gated MLPs, no biases; the token table is the head."""
    stack = TransformerConfig(width, layers, AttentionConfig(heads), MLPConfig(mlp, gated=True, activation="silu"), NormConfig(eps=1e-5),
                              rotary=RotaryConfig())
    return CausalLMConfig(vocab, context, stack, family="llama")


def gpt_shape(width, layers, heads, *, context=1024):
    """Learned positions, LayerNorm, plain MLPs of four times the width, biases; the token table is the head."""
    stack = TransformerConfig(width, layers, AttentionConfig(heads, bias=True, out_bias=True),
                              MLPConfig(4 * width, activation="gelu_tanh", bias=True), NormConfig("layer", eps=1e-5))
    return CausalLMConfig(50257, context, stack, learned_positions=True, family="gpt2")


def llama3_8b():
    """Grouped queries, a longer base of the rotary positions, a head of its own."""
    cfg = llama_shape(4096, 32, 32, 14336, vocab=128256, context=8192)
    stack = replace(cfg.transformer, attention=AttentionConfig(32, kv_heads=8), rotary=RotaryConfig(theta=500000.0))
    return replace(cfg, transformer=stack, tied=False)


PRESETS = {
    "1m": llama_shape(128, 4, 4, 344, vocab=2048, context=256),
    "3m": llama_shape(192, 5, 4, 512, vocab=4096),
    "10m": llama_shape(320, 6, 5, 832),
    "30m": llama_shape(512, 9, 8, 1408, context=1024),
    "100m": llama_shape(768, 11, 12, 2048, vocab=32768, context=1024),
    "gpt2": gpt_shape(768, 12, 12),
    "gpt2-medium": gpt_shape(1024, 24, 16),
    "gpt2-large": gpt_shape(1280, 36, 20),
    "gpt2-xl": gpt_shape(1600, 48, 25),
    "gpt3": gpt_shape(12288, 96, 96, context=2048),
    "llama3-8b": llama3_8b(),
}


def preset(name):
    """Name -> CausalLMConfig; change fields with dataclasses.replace."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


@dataclass(frozen=True)
class Needs:
    """Bytes, and the parameters that they come from."""
    parameters: int
    weights: int                # to generate: the weights ...
    cache: int                  # ... and the keys and values of all positions
    states: int                 # to train, in float32: weights, their gradients, AdamW's two averages ...
    activations: int            # ... and what one forward keeps for its gradient; bf16 autocast about halves it

    @property
    def inference(self):
        return self.weights + self.cache

    @property
    def training(self):
        return self.states + self.activations


def needs(cfg, *, batch=1, length=None, dtype=torch.bfloat16):
    """CausalLMConfig -> Needs for `batch` texts of `length` tokens (default: the context); dtype: of weights and cache when generating.

    Kernels' workspace, fragmentation and torch itself come on top."""
    batch, length, dtype = whole("batch", batch, 1), whole("length", cfg.context if length is None else length, 1), floating(dtype)
    if cfg.learned_positions and length > cfg.context:
        raise InputError(f"this model has {cfg.context} learnt positions, it reads no {length:,} tokens")
    with FakeTensorMode():                               # tensors with a shape and a device, and nothing inside
        lm = CausalLM(cfg)
        parameters = sum(p.numel() for p in lm.parameters())
        activations = kept_bytes(lm, torch.zeros(batch, length, dtype=torch.long))
    _, G, E = head_sizes(cfg.transformer.width, cfg.transformer.attention)
    cache = 2 * cfg.transformer.layers * batch * G * length * E * dtype.itemsize
    return Needs(parameters, parameters * dtype.itemsize, cache, parameters * 16, activations)


def kept_bytes(lm, ids):
    """Bytes that autograd keeps between forward and backward of lm.loss(ids, ids), without parameters and their gradients."""
    own = {p.untyped_storage()._cdata for p in lm.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = lm.hidden(ids)
    return sum(storage.nbytes() for storage in kept.values()) + states.nbytes        # the loss keeps the gradient of the states, no logits


@command
def main():
    print("memory for one text as long as the context: bf16 to generate, float32 to train")
    print(f"{'preset':<12} {'parameters':>15} {'layout':>7} {'inference GB':>13} {'training GB':>12}")
    for name, cfg in PRESETS.items():
        need = needs(cfg)
        print(f"{name:<12} {need.parameters:>15,} {cfg.family:>7} {need.inference / 1e9:>13.3f} {need.training / 1e9:>12.3f}")


if __name__ == "__main__":
    main()
