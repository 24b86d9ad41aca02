"""The vision tower: shapes, places, and what it refuses."""
import pytest
import torch

from gencore.check import ConfigError, InputError
from multimodal.vision import VisionConfig, VisionTower

CFG = VisionConfig(image=16, patch=4, width=32, layers=2, heads=4, mlp=48)


def test_a_picture_becomes_one_vector_a_patch():
    assert VisionTower(CFG)(torch.randn(3, 3, 16, 16)).shape == (3, 16, 32)


def test_the_final_norm_stands_after_the_features():
    tower = VisionTower(CFG)
    pictures = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(tower(pictures), tower.norm(tower.features(pictures)))


def test_every_patch_sees_every_other():
    tower = VisionTower(CFG)
    pictures = torch.randn(1, 3, 16, 16, requires_grad=True)
    tower(pictures)[0, 0].square().sum().backward()
    assert (pictures.grad.unfold(2, 4, 4).unfold(3, 4, 4).abs().sum((1, 4, 5)) > 0).all()


def test_places_tell_the_same_patches_apart():
    tower = VisionTower(CFG)
    grey = torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        out = tower(grey)[0]
    assert (out[0] - out[1]).abs().max() > 1e-3


def test_pictures_of_another_size_are_refused():
    with pytest.raises(InputError, match="H should be 16, got 20"):
        VisionTower(CFG)(torch.randn(1, 3, 20, 16))


def test_a_patch_that_does_not_divide_the_picture_is_refused():
    with pytest.raises(ConfigError, match="patch should divide image 16, got 5"):
        VisionConfig(image=16, patch=5)
