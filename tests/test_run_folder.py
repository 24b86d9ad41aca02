"""A run folder: complete, exported whole, tidied after a kill."""

import json

from test_train import HARD, STATE, load_state, metrics, torch, toy_fit

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
