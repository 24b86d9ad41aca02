"""A run folder: complete, exported whole, tidied after a kill."""

import json
from dataclasses import replace

import pytest
from test_train import HARD, PLAIN, STATE, load_state, metrics, torch, toy_fit

from gencore.check import CheckpointError, ConfigError
from gencore.checkpoint import load_tensors


def test_a_run_folder_is_complete(tmp_path):
    model = toy_fit(tmp_path / "run", HARD, evaluate=lambda model: {"held_out_loss": 1.5, "training_mode": model.training},
                    sample=lambda model, folder, step: (folder / f"{step}.txt").write_text("a sample"),
                    card={"title": "A toy", "Data": "random ids", "Licence": "CC0", "Command": "python toy.py"})
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == ["README.md", "checkpoints", "config.json", "loss.png", "metrics.jsonl",
                                                           "model", "samples"]
    assert json.loads((run / "config.json").read_text())["muon_lr"] == 1e-2
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-000008", "step-000012"]
    exported = load_tensors(run / "model/model.safetensors")
    assert all(torch.equal(exported[name], weight) for name, weight in model.state_dict().items())      # the averaged weights
    state = load_state(run / "checkpoints/step-000012")
    assert all(torch.equal(exported[name], state["ema"]["weights"][name]) for name in state["ema"]["weights"])
    assert not torch.equal(exported["head.weight"], state["model"]["head.weight"])
    card = (run / "README.md").read_text()
    for words in ("# A toy", "## Data\n\nrandom ids", "CC0", "python toy.py", "| held_out_loss | 1.5 |", "12 of 12 steps", "CPU time",
                  "- lr: 0.01"):
        assert words in card
    assert "Not stated" not in card
    toy_fit(tmp_path / "other", HARD, card={})
    bare = (tmp_path / "other/README.md").read_text()
    assert "## Command\n\n```\npython " in bare and "## Data\n\nNot stated" in bare and "## Licence\n\nNot stated" in bare
    assert (run / "model/README.md").read_text() == card
    assert [row["training_mode"] for row in metrics(run) if "training_mode" in row] == [0.0] * 4


def test_a_checkpoint_is_what_export_writes_and_the_training_state(tmp_path):
    def export(model):
        return {"model.safetensors": {"head": model.head.weight}, "config.json": {"width": 16}, "README.md": "mine"}

    toy_fit(tmp_path / "run", HARD, export=export)
    for folder, more in (("checkpoints/step-000012", {STATE}), ("model", set())):
        names = {path.name for path in (tmp_path / "run" / folder).iterdir()}
        assert names - {"digests.json"} == {"model.safetensors", "config.json", "README.md"} | more
        assert json.loads((tmp_path / "run" / folder / "config.json").read_text()) == {"width": 16}
    assert (tmp_path / "run/model/README.md").read_text() == "mine"


def test_what_a_killed_save_left_is_removed_by_the_next_save(tmp_path):
    stray = tmp_path / "run/checkpoints/.step-000003.tmp-1"
    stray.mkdir(parents=True)
    (stray / STATE).write_text("half")
    toy_fit(tmp_path / "run", HARD)
    assert not stray.exists()


def test_files_of_somebody_else_are_not_written_over(tmp_path):
    for name, content in (("README.md", "MY PROJECT"), ("config.json", '{"mine": 1}'), ("metrics.jsonl", '{"epoch": 5}\n'), ("config.json", "[")):
        folder = tmp_path / f"{name}-{len(content)}"
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(ConfigError, match=f"holds a {name} that is of no run: choose another folder"):
            toy_fit(folder)
        assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == content
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="can't make the run folder .*; choose another folder"):
            toy_fit(folder)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text('{"steps": 3, "lr": 1}')                          # killed before its first checkpoint
    (tmp_path / "begun" / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"epoch": 5}\n7\n')
    toy_fit(tmp_path / "begun")
    assert [row["step"] for row in metrics(tmp_path / "begun")] == [1, 2, 3, 4, 5, 6]


def test_what_was_filled_in_on_a_card_stays(tmp_path):
    toy_fit(tmp_path / "run")
    for place, old, new in (("README.md", "Data\n\nNot stated", "Data\n\nMy cats, CC0. Not stated"), ("model/README.md", "Not stated: that", "MIT")):
        path = tmp_path / "run" / place
        path.write_text(path.read_text().replace(old, new))
    toy_fit(tmp_path / "run", replace(PLAIN, steps=8), resume=True, extend=True)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "My cats, CC0." in card and "## Licence\n\nMIT of the data" in card and card == (tmp_path / "run/model/README.md").read_text()


def test_a_flipped_bit_of_a_training_state_is_found(tmp_path):
    toy_fit(tmp_path / "run")
    path = next((tmp_path / "run" / "checkpoints").iterdir()) / STATE
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 64
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="training_state.pt can't be read .*remove .*step-000006"):
        load_state(path.parent)


def test_a_run_is_not_resumed_with_another_tokenizer_or_to_fewer_steps(tmp_path):
    files = lambda words: lambda model: {"model.safetensors": {"head": model.head.weight}, "tokenizer.json": {"words": words}, "a.txt": "same"}
    toy_fit(tmp_path / "run", export=files(["a", "b"]))
    with pytest.raises(ConfigError, match="begun with another tokenizer.json: resume it with the data"):
        toy_fit(tmp_path / "run", replace(PLAIN, steps=9), export=files(["a", "c"]), resume=True, extend=True)
    with pytest.raises(ConfigError, match="is at step 6 already: give as many steps or more, got 3"):
        toy_fit(tmp_path / "run", replace(PLAIN, steps=3), export=files(["a", "b"]), resume=True, extend=True)
    toy_fit(tmp_path / "run", replace(PLAIN, steps=9), export=files(["a", "b"]), resume=True, extend=True)


def test_a_run_that_was_moved_goes_on_though_its_files_name_its_folder(tmp_path):
    files = lambda folder: lambda model: {"model.safetensors": {"head": model.head.weight}, "adapter.json": {"base": str(folder / "base")}}
    toy_fit(tmp_path / "one", export=files(tmp_path / "one"))
    (tmp_path / "one").rename(tmp_path / "two")
    with pytest.raises(ConfigError, match="begun with another adapter.json"):
        toy_fit(tmp_path / "two", export=files(tmp_path / "three"), resume=True)
    toy_fit(tmp_path / "two", export=files(tmp_path / "two"), resume=True)


def test_a_name_that_is_no_utf8_is_on_the_card_as_it_can_be(tmp_path):
    toy_fit(tmp_path / "run", card={"Data": "d\udce4ta"})
    assert "d\\udce4ta" in (tmp_path / "run" / "model" / "README.md").read_text()
    toy_fit(tmp_path / "d\udce4ta")
    toy_fit(tmp_path / "d\udce4ta", replace(PLAIN, steps=8), resume=True, extend=True)
