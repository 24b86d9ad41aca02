"""textgen/lora.py: an adapter that peft opens with the same logits, and the way back; only it is trained; another base is refused."""
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencore.attention import AttentionConfig
from gencore.check import CheckpointError, ConfigError, InputError
from gencore.checkpoint import seal
from gencore.data import Batches
from gencore.layers import MLPConfig, NormConfig
from gencore.lora import BASE
from gencore.positions import RotaryConfig
from gencore.train import Run, TrainConfig, fit
from gencore.transformer import TransformerConfig
from textgen import CausalLM
from textgen.conversations import Packed, packed_loss
from textgen.lora import LoRA
from textgen.model import CausalLMConfig

LLAMA = CausalLMConfig(vocab=40, context=32, transformer=TransformerConfig(
    width=32, layers=2, attention=AttentionConfig(heads=4, kv_heads=2), mlp=MLPConfig(48, True, "silu"), rotary=RotaryConfig()))
GPT2 = CausalLMConfig(vocab=40, context=32, learned_positions=True, family="gpt2", transformer=TransformerConfig(
    width=32, layers=2, attention=AttentionConfig(heads=4, bias=True, out_bias=True), mlp=MLPConfig(64, activation="gelu_tanh", bias=True),
    norm=NormConfig("layer", eps=1e-5)))
IDS = torch.randint(0, 40, (2, 20), generator=torch.Generator().manual_seed(1))


def saved(folder, cfg=LLAMA, seed=0):
    """A base in a folder, and the model loaded from it."""
    torch.manual_seed(seed)
    CausalLM(cfg).save_pretrained(folder)
    return CausalLM.from_pretrained(folder)


def moved(lora):
    """The adapter as if it had learnt something."""
    with torch.no_grad():
        for A, B in lora.adapter.matrices().values():
            A.normal_()
            B.normal_(std=0.1)
    lora.lm.eval()
    return lora


def logits(lm):
    with torch.no_grad():
        return lm(IDS)


def in_peft(base, adapter):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    with torch.no_grad():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)(IDS).logits


@pytest.mark.parametrize("cfg", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("targets", [("qkv",), ("qkv", "out", "gate_up", "up", "down")], ids=["qkv", "all"])
def test_peft_opens_the_adapter_with_the_same_logits(cfg, targets, tmp_path):
    lm = saved(tmp_path / "base", cfg)
    lora = moved(LoRA(lm, rank=3, alpha=7, targets=targets))
    lora.save_pretrained(tmp_path / "adapter")
    assert (logits(lora.lm) - logits(lm)).abs().max() > 0.01
    torch.testing.assert_close(logits(lora.lm), in_peft(tmp_path / "base", tmp_path / "adapter"), rtol=1e-5, atol=1e-5)
    again = LoRA.from_pretrained(lm, tmp_path / "adapter")
    assert again.adapter.ranks == lora.adapter.ranks                                                     # the shared A is found again
    torch.testing.assert_close(logits(again.lm), logits(lora.lm), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits(lora.merged()), logits(lora.lm), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_from_peft_comes_here_and_goes_back(rslora, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    lm = saved(tmp_path / "base")
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(
        r=2, lora_alpha=5, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM", use_rslora=rslora))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    theirs.save_pretrained(tmp_path / "adapter")
    lora = LoRA.from_pretrained(lm, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(logits(lora.lm), theirs(IDS).logits, rtol=1e-5, atol=1e-5)
    assert lora.adapter.ranks["transformer.blocks.0.attention.qkv"] == 4                         # two of rank 2, as blocks
    lora.save_pretrained(tmp_path / "back")
    torch.testing.assert_close(in_peft(tmp_path / "base", tmp_path / "back"), logits(lora.lm), rtol=1e-5, atol=1e-5)


def test_an_adapter_of_one_block_stays_one_of_one_block(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM
    lm = saved(tmp_path / "base")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(
        r=2, target_modules=["q_proj", "up_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    lora = LoRA.from_pretrained(lm, tmp_path / "adapter")
    moved(lora).save_pretrained(tmp_path / "back")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "back")
    assert not [name for name, _ in theirs.named_parameters() if "lora_" in name and ".layers.0." in name]
    torch.testing.assert_close(in_peft(tmp_path / "base", tmp_path / "back"), logits(lora.lm), rtol=1e-5, atol=1e-5)


def test_an_alpha_of_some_layers_counts_as_in_peft_and_a_broken_configuration_is_named(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    lm = saved(tmp_path / "base")
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(
        r=2, lora_alpha=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", alpha_pattern={"q_proj": 8, r"layers\.0\.mlp\..*": 5}))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
        wanted = theirs(IDS).logits
    theirs.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(LoRA.from_pretrained(lm, tmp_path / "adapter").lm), wanted, rtol=1e-5, atol=1e-5)
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    for change, words in (({"r": 0}, "r should be a whole number of at least 1, got 0"), ({"r": None}, "r should be"),
                          ({"lora_alpha": "8"}, "should be numbers above 0, got '8'"), ({"alpha_pattern": {"q_proj": None}}, "got None"),
                          ({"alpha_pattern": ["q_proj"]}, "should be an object of patterns"),
                          ({"alpha_pattern": {"(": 1}}, r"alpha_pattern '\(' is no regular expression")):
        path.write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=words):
            LoRA.from_pretrained(lm, tmp_path / "adapter")


def test_only_the_adapter_is_trained(tmp_path):
    lm = saved(tmp_path / "base")
    lora = LoRA(lm, rank=4)
    torch.testing.assert_close(logits(lora.lm), logits(lm), rtol=1e-6, atol=1e-6)        # it starts as nothing
    before = {name: tensor.clone() for name, tensor in lora.lm.state_dict().items()}
    rows = Packed([(list(range(2, 30)), list(range(3, 31)))], 32)
    config = TrainConfig(steps=20, batch=1, lr=1e-2, warmup=1, ema=0.5, save_every=0)
    fit(lora.lm, packed_loss, Batches(rows, 1), config, run=Run(tmp_path / "run", export=lora.export, progress=False))
    changed = {name for name, tensor in lora.lm.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".lora_" in name}
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.3
    again = LoRA.from_pretrained(lm, tmp_path / "run" / "model")
    torch.testing.assert_close(logits(again.lm), logits(lora.lm), rtol=1e-6, atol=1e-6)


def test_an_adapter_for_another_base_is_refused(tmp_path):
    lm = saved(tmp_path / "base")
    moved(LoRA(lm)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"is an adapter for .*base \(weights [0-9a-f]{16}\), this model is .*other \(weights"):
        LoRA.from_pretrained(saved(tmp_path / "other", seed=1), tmp_path / "adapter")
    fresh = lambda **changes: CausalLM(replace(LLAMA, transformer=replace(LLAMA.transformer, **changes)))
    assert LoRA.from_pretrained(fresh(), tmp_path / "adapter")                           # unnamed weights: the shapes decide
    with pytest.raises(CheckpointError, match=r'another base: ".*down_proj" has the shape \(32, 48\) there and \(32, 50\) in this model'):
        LoRA.from_pretrained(fresh(mlp=MLPConfig(50, True, "silu")), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match='another base: it changes "model.layers.1.mlp.down_proj", which this model has not'):
        LoRA.from_pretrained(fresh(layers=1), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match='another base: it changes "model.layers.0.mlp.down_proj"'):
        LoRA.from_pretrained(saved(tmp_path / "gpt2", GPT2), _without_base(tmp_path / "adapter"))


def test_an_adapter_of_the_token_table_or_the_head_is_named(tmp_path):
    lm = saved(tmp_path / "base")
    for name in ("lm_head.weight", "model.embed_tokens.lora_embedding_A"):
        moved(LoRA(lm)).save_pretrained(tmp_path / "adapter")
        weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        save_file({**weights, f"base_model.model.{name}": torch.zeros(2, 2)}, _without_base(tmp_path / "adapter") / "adapter_model.safetensors")
        seal(tmp_path / "adapter")
        with pytest.raises(CheckpointError, match=f'holds "base_model.model.{name}": .* no adapter of the token table or the head'):
            LoRA.from_pretrained(lm, tmp_path / "adapter")


def _without_base(folder):
    """As a folder from elsewhere: nothing says which weights it was made for."""
    (folder / BASE).unlink()
    return folder


def test_wrong_input_is_named(tmp_path):
    lm = saved(tmp_path / "base")
    with pytest.raises(InputError, match="rank should be a whole number of at least 1, got 0"):
        LoRA(lm, rank=0)
    with pytest.raises(InputError, match="targets should be some of qkv, out"):
        LoRA(lm, targets=("q_proj",))
    with pytest.raises(InputError, match="targets should be matrices of this model, qkv, out, gate_up, down, got"):
        LoRA(lm, targets=("up",))
    lora = LoRA(lm)
    with pytest.raises(CheckpointError, match="the model has no tensor"):
        lora.lm.save_pretrained(tmp_path / "no")                                         # merged() first
    lora.save_pretrained(tmp_path / "adapter")
    (tmp_path / "foreign").mkdir()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "foreign" / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ConfigError, match="use_dora should be False"):
        LoRA.from_pretrained(lm, tmp_path / "foreign")


@pytest.mark.parametrize("pattern", ["([a-z0-9_.]+)+!", "(a|aa)*b", ".*.*.*.*x", "(.|[a-z._])?" * 30 + "#", "(.|[a-z._])" * 30 + "#"])
def test_a_pattern_that_could_take_for_ever_is_refused(pattern, tmp_path):
    base = saved(tmp_path / "base")
    LoRA(base, rank=2).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha_pattern": {pattern: 1}}))
    (tmp_path / "adapter" / "digests.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="could take for ever to compare: expected at most three repeats"):
        LoRA.from_pretrained(base, tmp_path / "adapter")
