"""gencore/average.py: the mean of folders of one model, and what has none."""
import shutil
import sys

import pytest
import torch

from gencore.average import average, main
from gencore.check import CheckpointError, InputError
from gencore.checkpoint import load_tensors, read_json, save_folder


@pytest.fixture
def folders(tmp_path):
    def folder(name, value, **config):
        files = {"model.safetensors": {"w": torch.full((2, 3), value, dtype=torch.bfloat16)}, "part/config.json": {"width": 3} | config,
                 "template.jinja": "hello", "README.md": name}
        save_folder(tmp_path / name, files)
        return tmp_path / name

    return folder


def test_each_weight_is_the_mean_and_what_they_share_stays(folders, tmp_path, monkeypatch):
    three = [folders(name, value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 6.0))]
    monkeypatch.setattr(sys, "argv", ["average", *map(str, three), "--out", str(tmp_path / "out")])
    main()
    weight, = load_tensors(tmp_path / "out").values()
    assert torch.equal(weight, torch.full((2, 3), 3.0, dtype=torch.bfloat16))
    assert read_json(tmp_path / "out" / "part" / "config.json") == {"width": 3} and (tmp_path / "out" / "template.jinja").read_text() == "hello"
    assert not (tmp_path / "out" / "README.md").exists()


def test_changes_are_added_to_where_they_began(folders, tmp_path, monkeypatch):
    three = [folders(name, value) for name, value in (("start", 1.0), ("a", 3.0), ("b", 2.0))]
    monkeypatch.setattr(sys, "argv", ["average", *map(str, three), "--weights", "-1", "1", "1", "--out", str(tmp_path / "out")])
    main()
    assert torch.equal(next(iter(load_tensors(tmp_path / "out").values())), torch.full((2, 3), 4.0, dtype=torch.bfloat16))
    for weights in ([0.5, 0.5], [1.0, 1.0, 1.0], [float("nan"), 0.5, 0.5]):
        with pytest.raises(InputError, match="weights should be 3, one for each folder, and sum to 1"):
            average(three, tmp_path / "other", weights=weights)


def test_other_models_have_no_average(folders, tmp_path):
    one, out = folders("a", 1.0), tmp_path / "out"
    with pytest.raises(InputError, match="needs two folders or more, got 1"):
        average([one], out)
    with pytest.raises(CheckpointError, match="config.json is not as .*: only one model's weights"):
        average([one, folders("b", 1.0, depth=2)], out)
    less = shutil.copytree(one, tmp_path / "less")
    (less / "template.jinja").unlink()
    with pytest.raises(CheckpointError, match="less has no template.jinja, as .*a has: give folders of one model"):
        average([one, less], out)
    save_folder(tmp_path / "c", {"model.safetensors": {"w": torch.zeros(3, 2)}, "part/config.json": {"width": 3}, "template.jinja": "hello"})
    with pytest.raises(CheckpointError, match="other names or shapes"):
        average([one, tmp_path / "c"], out)
    save_folder(tmp_path / "d", {"config.json": {}})
    with pytest.raises(CheckpointError, match="no .safetensors file"):
        average([tmp_path / "d", tmp_path / "d"], out)
    save_folder(tmp_path / "e", {"adapter_config.json": {}, "adapter_model.safetensors": {"A": torch.zeros(1, 3)}})
    with pytest.raises(InputError, match="is an adapter, .*: average what LoRA.merged"):
        average([tmp_path / "e", tmp_path / "e"], out)
    assert not out.exists()


def test_hidden_files_of_a_folder_are_no_part_of_its_model(folders, tmp_path):
    one, two = folders("a", 1.0), folders("b", 2.0)
    (one / ".gitattributes").write_text("*.safetensors filter=lfs")
    average([one, two], tmp_path / "out")
    assert not (tmp_path / "out" / ".gitattributes").exists() and len(load_tensors(tmp_path / "out")) == 1
