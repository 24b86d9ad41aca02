"""Groups, schedule and average against closed forms and torch's own optimizers."""

import copy

import pytest
import torch
from torch import nn

from gencore.check import ConfigError
from gencore.muon import newton_schulz, newton_schulz_by_gram, orthogonal
from gencore.optim import EMA, make_optimizer, schedule, split_parameters
from gencore.train import TrainConfig
from gencore.transformer import Transformer, TransformerConfig


class Words(nn.Module):
    """Embedding, blocks on the core, a head; tied when asked."""

    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.patch = nn.Conv2d(3, 16, 2)
        self.body = Transformer(TransformerConfig(width=16, layers=2))
        self.head = nn.Linear(16, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def names_of(model, parameters):
    wanted = {id(p) for p in parameters}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def test_the_schedule_rises_stays_and_falls_linearly():
    config = TrainConfig(steps=100, warmup=10, decay=0.2)
    assert [schedule(step, config) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert {schedule(step, config) for step in range(9, 81)} == {1.0}
    assert [schedule(step, config) for step in (90, 99)] == pytest.approx([0.5, 0.05])


def test_no_warmup_and_no_decay_is_a_constant_rate():
    config = TrainConfig(steps=7, warmup=0, decay=0.0)
    assert [schedule(step, config) for step in range(7)] == [1.0] * 7


@pytest.mark.parametrize("tied", [False, True])
def test_muon_gets_the_matrices_inside_blocks_and_nothing_else(tied):
    model = Words(tied)
    matrices, decayed, plain = split_parameters(model, muon=True)
    inside = {name for name, p in model.named_parameters() if ".blocks." in name and p.ndim == 2}
    assert names_of(model, matrices) == inside and len(inside) >= 8
    assert names_of(model, decayed) == {"embed.weight", "patch.weight"} | (set() if tied else {"head.weight"})
    assert all(p.ndim < 2 for p in plain)
    assert len(matrices) + len(decayed) + len(plain) == len(list(model.parameters()))


def test_muon_gets_convolutions_inside_blocks_but_no_grouped_ones():
    model = nn.ModuleDict({"conv_in": nn.Conv2d(3, 8, 3), "mid_block": nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8))})
    matrices, decayed, _ = split_parameters(model, muon=True)
    assert names_of(model, matrices) == {"mid_block.0.weight"}
    assert names_of(model, decayed) == {"conv_in.weight", "mid_block.1.weight"}
    before, gradient = model["mid_block"][0].weight.detach().clone(), torch.randn(8, 8, 3, 3)
    model["mid_block"][0].weight.grad = gradient
    make_optimizer(model, TrainConfig(muon_lr=1e-2, weight_decay=0.0)).step()
    moved = before - model["mid_block"][0].weight.detach()
    torch.testing.assert_close(moved.flatten(1), 1e-2 * 0.2 * 72 ** 0.5 * orthogonal(gradient.flatten(1)), atol=1e-3, rtol=1e-2)


def test_without_muon_rate_adamw_has_everything_and_frozen_weights_are_left_out():
    model = Words()
    model.embed.weight.requires_grad_(False)
    optimizer = make_optimizer(model, TrainConfig())
    assert [type(part) for part in optimizer.parts] == [torch.optim.AdamW]
    held = {id(p) for group in optimizer.parts[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_model_without_trainable_weights_is_refused():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), TrainConfig())


def exact_orthogonal(matrix):
    """Newton-Schulz as Jordan et al. write it, in float64."""
    x = matrix.double() / matrix.double().norm()
    x = x.t() if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(5):
        gram = x @ x.t()
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.t() if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_muon_makes_the_matrix_orthogonal_as_its_definition_does(shape, rank):
    matrix = torch.randn(shape) if rank is None else torch.randn(shape[0], rank) @ torch.randn(rank, shape[1]) + 1e-2 * torch.randn(shape)
    unit, exact = matrix / matrix.norm(), exact_orthogonal(matrix)
    wide = unit if shape[0] <= shape[1] else unit.t()
    for ours in (newton_schulz(wide, 5), newton_schulz_by_gram(wide, 5)):
        torch.testing.assert_close((ours if wide is unit else ours.t()).double(), exact, rtol=1e-3, atol=1e-3)
    ours = orthogonal(matrix)                                        # in bfloat16 where the processor has it
    assert (torch.linalg.svdvals(ours) - torch.linalg.svdvals(exact.float()))[:4].abs().max() < 0.05
    assert torch.linalg.svdvals(ours)[:4].sub(1).abs().max() < 0.4
    assert orthogonal(matrix.bfloat16()).dtype == torch.bfloat16


def test_a_step_of_both_equals_each_of_torchs_optimizers_alone():
    """Muon to the roughness of torch's bfloat16 iteration, AdamW to rounding."""
    ours, theirs = Words(), Words()
    theirs.load_state_dict(ours.state_dict())
    before = [p.detach().clone() for p in ours.parameters()]
    optimizer = make_optimizer(ours, TrainConfig(lr=1e-2, muon_lr=2e-2, weight_decay=0.1))
    matrices, decayed, plain = split_parameters(theirs, muon=True)
    muon = torch.optim.Muon(matrices, lr=1e-2, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.95))
    for _ in range(3):
        for a, b in zip(ours.parameters(), theirs.parameters()):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.set_share(0.5)                                     # half of each peak rate
        optimizer.step()
        muon.step()
        adamw.step()
    by_muon = {id(p) for p in matrices}
    for old, a, b in zip(before, ours.parameters(), theirs.parameters()):
        if id(b) in by_muon:
            assert (a - b).norm() < 0.03 * (b - old).norm()
        else:
            torch.testing.assert_close(a, b)


def test_optimizer_state_survives_saving_to_the_bit():
    torch.manual_seed(0)
    one, two = Words(), Words()
    config = TrainConfig(muon_lr=1e-2)
    first, second = make_optimizer(one, config), make_optimizer(two, config)

    def step(model, optimizer, seed):
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()

    step(one, first, 1)
    two.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))        # torch shares the tensors otherwise
    step(one, first, 2)
    step(two, second, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_the_average_follows_its_closed_form_and_forgets_the_start():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(100.0)
    ema, expected = EMA(model, 0.9), 100.0
    for n in range(1, 200):
        model.weight.data.fill_(float(n))
        ema.update(model)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert ema.weights["weight"].item() == pytest.approx(expected, rel=1e-5)
    model.weight.data.fill_(0.0)
    early = EMA(model, 0.9999)
    for _ in range(20):
        model.weight.data.fill_(1.0)
        early.update(model)
    assert early.weights["weight"].item() > 0.95                   # without the warm-up of its decay it would be 0.002


def test_the_average_is_lent_to_the_model_and_taken_back_to_the_bit():
    model = Words()
    before = {name: w.clone() for name, w in model.state_dict().items()}
    ema = EMA(model, 0.5)
    for weight in ema.weights.values():
        weight.mul_(3)
    with pytest.raises(RuntimeError), ema.applied(model):
        assert all(torch.equal(p, 3 * before[name]) for name, p in model.named_parameters())
        raise RuntimeError
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_an_average_outside_0_to_1_is_refused(decay):
    with pytest.raises(ConfigError, match="ema should lie between 0 and 1"):
        EMA(nn.Linear(1, 1), decay)
