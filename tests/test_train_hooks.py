"""What the training loop owes the functions of its run: a model where its caller had it, and a checkpoint when they fail."""
from dataclasses import replace

import pytest
import torch

from gencore.check import ConfigError
from gencore.train import mark_of
from tests.test_train import HARD, PLAIN, Ragged, Toy, equal, loss, metrics, stop_at, toy_fit


def test_what_was_learnt_is_saved_before_an_evaluation_that_fails(tmp_path):
    def evaluate(model):
        if int(model.seen) == 4:
            raise ValueError("no such word")
        return {}

    class Counted(Toy):
        seen = property(lambda self: len(metrics(tmp_path)) + 1)                    # rows of the steps before this one, and this one

    config = replace(HARD, steps=6, eval_every=2, save_every=6)
    with pytest.raises(ValueError, match="no such word"):
        toy_fit(tmp_path, config, model=Counted(), evaluate=evaluate)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]
    resumed = toy_fit(tmp_path, config, resume=True)
    assert equal(resumed, toy_fit(tmp_path / "unbroken", config))


def test_a_resumed_run_keeps_to_the_rest_of_its_plan_too(tmp_path):
    config = replace(PLAIN, steps=2, save_every=2)
    toy_fit(tmp_path, config, plan={"alpha": 8.0, "schedule": {"path": "vp"}})
    with pytest.raises(ConfigError, match="begun with other settings .alpha was 8.0, is 16.0"):
        toy_fit(tmp_path, config, plan={"alpha": 16.0, "schedule": {"path": "vp"}}, resume=True)
    assert toy_fit(tmp_path, config, plan={"alpha": 8.0, "schedule": {"path": "vp"}}, resume=True)


@pytest.mark.parametrize("kept, words", [(True, "To go on: the same command with --resume"), (False, "and can not go on from there")])
def test_a_run_that_is_stopped_tells_whether_it_can_go_on(kept, words, tmp_path, capsys):
    stop_at(tmp_path, replace(PLAIN, eval_every=1), 2, kept=kept)
    said = capsys.readouterr().err
    assert words in said and (str(tmp_path) in said) == kept


def test_a_batch_is_known_by_its_numbers_and_real_ones_by_their_size():
    batch = {"ids": torch.arange(6).view(2, 3), "latents": torch.linspace(-1, 2, 8), "names": ["a", "b"]}
    assert mark_of(batch) == mark_of(batch | {"latents": batch["latents"] * (1 + 1e-7)})
    others = [{"ids": batch["ids"].flip(0)}, {"ids": batch["ids"].view(3, 2)}, {"latents": batch["latents"] + 0.5}, {"more": torch.ones(1)}]
    assert len({mark_of(batch | other) for other in ({}, *others)}) == 5


def test_a_resumed_run_tells_when_its_data_are_others(tmp_path, capsys):
    config, others = replace(PLAIN, steps=2, save_every=2), "was begun with other data"
    toy_fit(tmp_path, config)
    toy_fit(tmp_path, config, resume=True)
    assert others not in capsys.readouterr().err
    toy_fit(tmp_path, config, resume=True, extend=True, data=Ragged(length=7))
    assert others in capsys.readouterr().err
    toy_fit(tmp_path, replace(config, steps=4), resume=True, extend=True, data=Ragged(length=7))
    assert others in capsys.readouterr().err                                        # that run had no step left: nothing of these is in its checkpoint
    toy_fit(tmp_path, replace(config, steps=5), resume=True, extend=True, data=Ragged(length=7))
    assert others not in capsys.readouterr().err


def test_hooks_find_the_model_where_it_came_from_and_training_where_the_accelerator_is(tmp_path, monkeypatch):
    class Moved(Toy):
        where = "cpu"

        def to(self, device):
            self.where = str(device)                                                # a stand-in: there is no accelerator here
            return self

    monkeypatch.setattr("gencore.train.device_of", lambda model: torch.device("meta"))
    seen = []
    told = lambda model, batch, generator: (seen.append(model.where), loss(model, batch, generator))[1]
    model = toy_fit(tmp_path, replace(PLAIN, steps=2, eval_every=1), model=Moved(), loss=told, evaluate=lambda m: {"home": m.where == "meta"})
    assert seen == ["cpu", "cpu"] and [row["home"] for row in metrics(tmp_path)] == [1, 1] and model.where == "meta"


def test_checkpoints_hold_the_weights_and_not_their_average_where_hooks_move_the_model(tmp_path):
    class Copies(Toy):
        def to(self, device):                                                       # as between two devices: other storages
            for parameter in self.parameters():
                parameter.data = parameter.data.clone()
            return self

    config = replace(HARD, eval_every=1)
    unbroken = toy_fit(tmp_path / "unbroken", config, model=Copies(), evaluate=lambda model: {})
    stop_at(tmp_path / "cut", config, 5, model=Copies())
    assert equal(toy_fit(tmp_path / "cut", config, model=Copies(), evaluate=lambda model: {}, resume=True), unbroken)
