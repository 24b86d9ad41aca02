"""textgen/preference.py: the loss against TRL's formula, and a margin that rises in training."""
import math

import pytest
import torch
import torch.nn.functional as F

from gencore.check import DataError, InputError
from gencore.data import Batches
from gencore.layers import MLPConfig
from gencore.positions import RotaryConfig
from gencore.tokenizer import train_bpe
from gencore.train import Run, TrainConfig, fit
from gencore.transformer import TransformerConfig
from textgen import CausalLM
from textgen.chat import chat_model
from textgen.model import CausalLMConfig
from textgen.preference import Preferences, answer_logprobs, dpo_loss, margins, preference_loss

ASKED = [{"role": "user", "content": "Where is the hotel?"}]
PAIRS = [{"prompt": ASKED, "chosen": "In the old town.", "rejected": "I do not care."},
         {"prompt": [*ASKED, {"role": "assistant", "content": "Which?"}, {"role": "user", "content": "Any."}], "chosen": "Good.", "rejected": "Go!"}]


@pytest.fixture
def lm():
    torch.manual_seed(0)
    tokenizer = train_bpe(["Where is the hotel? In the old town. I do not care.\n" * 4], 300)
    stack = TransformerConfig(width=32, layers=2, mlp=MLPConfig(48, True, "silu"), rotary=RotaryConfig())
    return chat_model(CausalLM(CausalLMConfig(vocab=len(tokenizer), context=64, transformer=stack, bos=0, eos=(0,), pad=1), tokenizer))


@pytest.mark.parametrize("beta, smoothing", [(0.1, 0.0), (0.5, 0.0), (0.1, 0.2)])
def test_the_loss_is_trls_formula(beta, smoothing):
    torch.manual_seed(0)
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps = -50 * torch.rand(4, 16)
    # trl.DPOTrainer, loss_type="sigmoid"
    logratios = chosen_logps - rejected_logps
    ref_logratios = ref_chosen_logps - ref_rejected_logps
    logits = logratios - ref_logratios
    losses = -F.logsigmoid(beta * logits) * (1 - smoothing) - F.logsigmoid(-beta * logits) * smoothing
    chosen_rewards, rejected_rewards = beta * (chosen_logps - ref_chosen_logps), beta * (rejected_logps - ref_rejected_logps)

    ours, rises = dpo_loss(torch.stack((chosen_logps, rejected_logps), 1), torch.stack((ref_chosen_logps, ref_rejected_logps), 1),
                           beta=beta, smoothing=smoothing)
    torch.testing.assert_close(ours, losses)
    torch.testing.assert_close(rises, chosen_rewards - rejected_rewards)


def test_an_answers_logprob_is_the_sum_over_its_words_and_its_end(lm):
    rows = Preferences(lm, PAIRS)
    for number, example in enumerate(PAIRS):
        for place, kind in enumerate(("chosen", "rejected")):
            opened = lm.tokenizer.chat_ids(example["prompt"])
            whole = lm.tokenizer.chat_ids([*example["prompt"], {"role": "assistant", "content": example[kind]}], prompt=False)
            with torch.no_grad():
                logps = lm(torch.tensor([whole]))[0].log_softmax(-1)
            wanted = sum(logps[i - 1, whole[i]] for i in range(len(opened), len(whole)))
            torch.testing.assert_close(rows.reference[number, place], wanted, rtol=1e-5, atol=1e-5)


def test_the_margin_of_the_preferred_answer_rises(lm, tmp_path):
    rows = Preferences(lm, PAIRS)
    assert margins(lm, rows).abs().max() < 1e-4                                          # policy and reference are one
    losses, loss = [], preference_loss(beta=0.1)
    config = TrainConfig(steps=15, batch=2, lr=3e-3, warmup=1, save_every=0)
    run = Run(tmp_path / "run", progress=False)
    start = loss(lm, {name: torch.stack([rows[i][name] for i in range(2)]) for name in rows[0]}, None)
    losses.append(float(start[0].detach()) / start[1])
    fit(lm, loss, Batches(rows, 2), config, run=run)
    assert abs(losses[0] - math.log(2)) < 1e-4
    after = margins(lm, rows)
    assert (after > 0.3).all()
    chosen, rejected = answer_logprobs(lm, rows.ids[0], rows.targets[0]).detach() - rows.reference[0]
    assert chosen > rejected


def test_the_chosen_answers_own_likelihood_is_added_a_token(lm):
    rows = Preferences(lm, PAIRS)
    batch = {name: torch.stack([rows[i][name] for i in range(2)]) for name in rows[0]}
    with torch.no_grad():
        plain, both = (preference_loss(likelihood=weight)(lm, batch, None)[0] for weight in (0.0, 0.5))
    lengths = torch.tensor([len(lm.tokenizer.encode(example["chosen"])) + 1 for example in PAIRS])           # and the end
    torch.testing.assert_close(both - plain, -0.5 * (rows.reference[:, 0] / lengths).sum(), rtol=1e-4, atol=1e-4)


def test_margins_are_the_same_however_many_are_read_at_once(lm, monkeypatch):
    import textgen.preference as module
    rows, read = Preferences(lm, PAIRS * 9), []
    with torch.no_grad():
        lm.embedding.weight.add_(0.05 * torch.randn_like(lm.embedding.weight))
    monkeypatch.setattr(module, "answer_logprobs", lambda model, ids, targets: (read.append(len(ids)), answer_logprobs(model, ids, targets))[1])
    found = margins(lm, rows)
    assert found.shape == (18,) and max(read) <= 8 and found.abs().max() > 0
    torch.testing.assert_close(found[:2], found[-2:])


def test_columns_behind_every_answer_change_nothing(lm):
    rows = Preferences(lm, PAIRS)
    batch = {name: torch.stack([rows[i][name] for i in range(2)]) for name in rows[0]}
    wider = {"ids": F.pad(batch["ids"], (0, 9), value=1), "targets": F.pad(batch["targets"], (0, 9), value=-100), "reference": batch["reference"]}
    seen = []
    lm.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    with torch.no_grad():
        losses = [preference_loss(likelihood=1.0)(lm, rows, None)[0] for rows in (batch, wider)]
    assert losses[0] == losses[1] and seen[0] == seen[1] < wider["ids"].shape[-1]


def test_wrong_input_is_named(lm):
    with pytest.raises(DataError, match="the list is empty"):
        Preferences(lm, [])
    with pytest.raises(DataError, match='preference 1 should be {"prompt": messages, "chosen": text'):
        Preferences(lm, [PAIRS[0], {"prompt": ASKED, "chosen": "a"}])
    with pytest.raises(DataError, match="preference 0: both answers are the same"):
        Preferences(lm, [{"prompt": ASKED, "chosen": "a", "rejected": "a"}])
    with pytest.raises(DataError, match="prompt and rejected answer have .* tokens, the model reads 64"):
        Preferences(lm, [{"prompt": ASKED, "chosen": "a", "rejected": "zq" * 60}])
    with pytest.raises(InputError, match="beta should be above 0"):
        preference_loss(beta=0)
    with pytest.raises(InputError, match="beta should be between 0 and .*, got 'x'"):
        preference_loss(beta="x")
    with pytest.raises(InputError, match="policy: expected 2 dimensions"):
        dpo_loss(torch.zeros(2), torch.zeros(2))
