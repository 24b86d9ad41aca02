"""The spliced model against transformers' LlavaForConditionalGeneration on the same weights, both ways."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from gencore.check import ConfigError
from gencore.checkpoint import save_folder
from gencore.tokenizer import train_bpe
from multimodal.caption import Captioner, own_state, pretrained_files
from multimodal.families.llava import LLAVA
from multimodal.splice import SpliceConfig, Spliced
from multimodal.vision import VisionConfig


def theirs(**text):
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig
    vision = SiglipVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16,
                                patch_size=8)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56, "vocab_size": 99,
             "max_position_embeddings": 64}
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**{**sizes, **text}), image_token_index=7,
                         image_seq_length=4, vision_feature_select_strategy="full", vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


def scrambled(model):
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return model


def ours_of(cfg, state):
    model = Spliced(cfg).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"head.weight"} if cfg.tied else set())
    return model


def batch():
    ids = torch.randint(8, 99, (2, 11))
    ids[:, 2:6] = 7
    return ids, torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize("text", [{}, {"num_key_value_heads": 2, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
                                  {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}])
def test_transformers_weights_give_the_same_logits_here(text):
    model = scrambled(theirs(**text))
    cfg = LLAVA.to_ours(model.config.to_dict())
    ours = ours_of(cfg, LLAVA.import_state(cfg, model.state_dict()))
    ids, pictures = batch()
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pictures, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(ours(ids, pictures), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 4.0}, {"rope_type": "dynamic", "factor": 2.0},
                                  {"rope_type": "yarn", "factor": 2.0}, {"rope_type": "default", "partial_rotary_factor": 0.5}])
@pytest.mark.parametrize("before", [True, False])
def test_positions_come_back_as_they_were(rope, before):
    config = theirs().config.to_dict()
    text = {name: value for name, value in config["text_config"].items() if not name.startswith("rope")}
    old = {"type": rope["rope_type"], **{name: value for name, value in rope.items() if name != "rope_type"}}        # as files had it
    text |= {"rope_scaling": old, "rope_theta": 500.0} if before else {"rope_parameters": {**rope, "rope_theta": 500.0}}
    cfg = LLAVA.to_ours(config | {"text_config": text})
    assert cfg.rotary.theta == 500.0 and (cfg.rotary.scaling is not None or cfg.rotary.partial == 0.5)
    assert LLAVA.to_ours(LLAVA.to_theirs(cfg)).rotary == cfg.rotary
    with pytest.raises(ConfigError, match="the llava layout can't say this model's rotary.layout='interleaved'"):
        LLAVA.to_theirs(replace(cfg, rotary=replace(cfg.rotary, layout="interleaved")))


def tiny_captioner(tied=True):
    tokenizer = train_bpe(["a red circle", "a blue square"], 270, specials=("</s>", "<pad>", "<image>"), length=64)
    cfg = SpliceConfig(VisionConfig(image=16, patch=8, width=32, layers=2, heads=4, mlp=48), vocab=len(tokenizer), width=48,
                       heads=4, kv_heads=2, mlp=56, tied=tied, context=64, image_token=tokenizer.id("<image>"))
    return Captioner(scrambled(Spliced(cfg)), tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_saved_here_opens_in_transformers_with_its_processor(tmp_path, tied):
    from PIL import Image
    from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration
    captioner = tiny_captioner(tied)
    captioner.save_pretrained(tmp_path / "reader")
    model, info = LlavaForConditionalGeneration.from_pretrained(tmp_path / "reader", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    processor = AutoProcessor.from_pretrained(tmp_path / "reader")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    inputs = processor(images=picture, text="<image>", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[captioner.model.cfg.image_token] * 4]
    generated = model.eval().generate(**inputs, max_new_tokens=12, do_sample=False)
    read = AutoTokenizer.from_pretrained(tmp_path / "reader").decode(generated[0, 4:], skip_special_tokens=True)
    assert read == captioner(picture, max_new_tokens=12)


def test_saved_and_loaded_reads_the_same(tmp_path):
    captioner = tiny_captioner()
    captioner.save_pretrained(tmp_path / "reader")
    again = Captioner.from_pretrained(tmp_path / "reader")
    assert again.model.cfg == captioner.model.cfg
    state, wanted = own_state(again.model), own_state(captioner.model)
    assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_names_of_transformers_in_memory_are_read_too():
    model = theirs(tie_word_embeddings=True)
    cfg = LLAVA.to_ours(model.config.to_dict())
    in_memory = LLAVA.import_state(cfg, model.state_dict())
    on_disk = LLAVA.export_state(cfg, in_memory)
    assert any(name.startswith("language_model.model.layers.0") for name in on_disk)
    assert any(name.startswith("vision_tower.vision_model.encoder") for name in on_disk)
    again = LLAVA.import_state(cfg, on_disk)
    assert all(torch.equal(again[name], t) for name, t in in_memory.items())


@pytest.mark.parametrize("field, value", [("vision_feature_select_strategy", "default"), ("vision_feature_layer", -2),
                                          ("projector_hidden_act", "relu")])
def test_a_configuration_that_means_another_model_is_refused(field, value):
    config = {**LLAVA.to_theirs(SpliceConfig()), field: value}
    with pytest.raises(ConfigError, match=field):
        LLAVA.to_ours(config)


def test_a_tampered_folder_is_refused(tmp_path):
    from gencore.check import CheckpointError
    captioner = tiny_captioner()
    files = pretrained_files(captioner.model, captioner.tokenizer)
    files["model.safetensors"]["language_model.model.norm.weight"] = torch.ones(47)
    save_folder(tmp_path / "reader", files)
    with pytest.raises(CheckpointError, match="decoder.norm.weight.*48.*47"):
        Captioner.from_pretrained(tmp_path / "reader")
