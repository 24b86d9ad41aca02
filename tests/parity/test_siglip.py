"""The vision tower against transformers' SiglipVisionModel on the same weights, both ways."""
import pytest
import torch

from gencore.check import CheckpointError
from multimodal.families.siglip import SIGLIP
from multimodal.vision import VisionConfig, VisionTower


def theirs(**changes):
    from transformers import SiglipVisionConfig, SiglipVisionModel
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 24,
             "patch_size": 8}
    return SiglipVisionModel(SiglipVisionConfig(**{**sizes, **changes})).eval()


def scrambled(model):
    """Every weight random, so that no bias or norm is left at 0 or 1."""
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu", "layer_norm_eps": 1e-3}, {"vision_use_head": False, "patch_size": 12}])
def test_transformers_weights_give_the_same_states_here(changes):
    model = scrambled(theirs(**changes))
    cfg = SIGLIP.to_ours(model.config.to_dict())
    ours = VisionTower(cfg).eval()
    ours.load_state_dict(SIGLIP.import_state(cfg, model.state_dict()))
    pictures = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        out = model(pictures, output_hidden_states=True)
        torch.testing.assert_close(ours(pictures), out.last_hidden_state, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.features(pictures), out.hidden_states[-1], rtol=1e-5, atol=1e-5)


def test_a_tower_saved_here_opens_in_transformers(tmp_path):
    from transformers import SiglipVisionModel

    from gencore.checkpoint import save_folder
    cfg = VisionConfig(image=24, patch=8, width=32, layers=2, heads=4, mlp=48)
    ours = scrambled(VisionTower(cfg)).eval()
    weights = SIGLIP.export_state(cfg, ours.state_dict())
    save_folder(tmp_path / "tower", {"config.json": SIGLIP.to_theirs(cfg), "model.safetensors": weights})
    model, info = SiglipVisionModel.from_pretrained(tmp_path / "tower", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pictures = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pictures).last_hidden_state, ours(pictures), rtol=1e-5, atol=1e-5)


def test_weights_survive_the_way_there_and_back():
    cfg = VisionConfig(image=24, patch=8, width=32, layers=2, heads=4, mlp=48)
    state = scrambled(VisionTower(cfg)).state_dict()
    again = SIGLIP.import_state(cfg, SIGLIP.export_state(cfg, state))
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


def test_a_missing_tensor_is_named():
    model = theirs()
    state = model.state_dict()
    cfg = SIGLIP.to_ours(model.config.to_dict())
    gone = next(name for name in state if name.endswith("layers.1.mlp.fc1.weight"))
    del state[gone]
    ours = {name: t.shape for name, t in VisionTower(cfg).state_dict().items()}
    with pytest.raises(CheckpointError, match="mlp.up.weight|fc1"):
        SIGLIP.check_shapes(cfg, {name: t.shape for name, t in state.items()}, ours)
