"""gencore/families.py: the rules both ways, and what is said when weights or fields do not fit."""
import pytest
import torch

from gencore.check import CheckpointError, ConfigError
from gencore.families import Convert, Drop, Family, Join, Rename, Reshape, Split, Tie, Transpose, expect_fields, read_fields, write_fields

RULES = (
    Rename("model.norm", "norm"),
    Split(("h.{n}.q", "h.{n}.k"), "blocks.{n}.qk", (4, 2)),
    Join("h.{n}.kv", ("blocks.{n}.key", "blocks.{n}.value"), (3, 3)),
    Transpose("h.{n}.up.{m}", "blocks.{n}.up.{m}"),
    Reshape("conv", "linear", to_theirs=(4, 4, 1, 1), to_ours=(4, 4)),
    Convert("logvar", "sigma", lambda t: (t / 2).exp(), lambda t: 2 * t.log()),
    Tie("head", "norm"),
    Drop("h.{n}.mask"),
)
FAMILY = Family("toy", None, None, lambda cfg: RULES, aliases=((r"^(?!model\.)norm$", "model.norm"),))


def theirs():
    torch.manual_seed(0)
    state = {"model.norm": torch.randn(3), "conv": torch.randn(4, 4, 1, 1), "logvar": torch.zeros(2)}
    for n in (0, 1, 10):
        state |= {f"h.{n}.q": torch.randn(4, 5), f"h.{n}.k": torch.randn(2, 5), f"h.{n}.kv": torch.randn(6, 5)}
        state |= {f"h.{n}.up.{m}": torch.randn(5, 7) for m in (0, 1)}
    return state


def test_the_rules_bring_a_state_here_and_back_to_the_bit():
    ours = FAMILY.import_state(None, theirs())
    assert ours["blocks.10.qk"].shape == (6, 5) and ours["blocks.1.up.0"].shape == (7, 5) and ours["blocks.0.value"].shape == (3, 5)
    back = FAMILY.export_state(None, ours)
    assert back.keys() == theirs().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs().items())


def test_other_spellings_tied_copies_and_old_buffers_are_accepted():
    state = theirs()
    state["norm"] = state.pop("model.norm")
    extra = {"head": state["norm"].clone(), "h.0.mask": torch.ones(1)}
    assert torch.equal(FAMILY.import_state(None, state | extra)["norm"], theirs()["model.norm"])


@pytest.mark.parametrize("change, words", [
    (lambda s: s.pop("h.10.k"), 'no tensor "h.10.k"'),
    (lambda s: s.pop("model.norm"), 'no tensor "model.norm"'),
    (lambda s: s.update(other=torch.ones(1)), 'a tensor "other" that toy does not'),
    (lambda s: s.update(head=torch.ones(3)), '"head" should equal'),
    (lambda s: s.update(norm=torch.ones(3)), '"model.norm" twice, once as "norm"'),
    (lambda s: s.update({"h.0.q": torch.ones(3, 5)}), '"h.0.q": dimension 0 should be 4'),
    (lambda s: s.update({"h.0.kv": torch.ones(5, 5)}), '"h.0.kv": dimension 0 should be 6')])
def test_weights_that_do_not_fit_are_named(change, words):
    state = theirs()
    change(state)
    with pytest.raises(CheckpointError, match=words):
        FAMILY.import_state(None, state)


def test_shapes_are_checked_without_the_weights():
    shapes = {name: tensor.shape for name, tensor in theirs().items()}
    wanted = {name: tensor.shape for name, tensor in FAMILY.import_state(None, theirs()).items()}
    FAMILY.check_shapes(None, shapes, wanted)
    with pytest.raises(CheckpointError, match=r'"norm" should have shape \(4,\) by the configuration, the weights give \(3,\)'):
        FAMILY.check_shapes(None, shapes, wanted | {"norm": (4,)})
    with pytest.raises(CheckpointError, match='nothing for "blocks.2.qk"'):
        FAMILY.check_shapes(None, shapes, wanted | {"blocks.2.qk": (6, 5)})
    del wanted["blocks.1.up.1"]
    with pytest.raises(CheckpointError, match='"blocks.1.up.1", which the configuration has not'):
        FAMILY.check_shapes(None, shapes, wanted)


def test_a_model_with_other_parts_has_no_place_in_the_layout():
    ours = FAMILY.import_state(None, theirs())
    with pytest.raises(CheckpointError, match='no place for "extra"'):
        FAMILY.export_state(None, ours | {"extra": torch.ones(1)})
    del ours["blocks.0.value"]
    with pytest.raises(CheckpointError, match='no tensor "blocks.0.value", which toy needs'):
        FAMILY.export_state(None, ours)


@pytest.mark.parametrize("lost", ["norm", "blocks.1.value", "linear"])
def test_a_model_that_lacks_a_part_is_not_exported(lost):
    ours = FAMILY.import_state(None, theirs())
    del ours[lost]
    with pytest.raises(CheckpointError, match=f'the model has no tensor "{lost}", which toy needs'):
        FAMILY.export_state(None, ours)


def test_fields_go_both_ways():
    from gencore.attention import AttentionConfig
    table = (("n_head", "heads", ...), ("bias", "bias", False))
    assert read_fields(table, {"n_head": 3}, "toy") == {"heads": 3, "bias": False}
    assert read_fields((("a", "x.y.z", 1),), {}, "toy") == {"x": {"y": {"z": 1}}}
    assert write_fields(table, AttentionConfig(heads=3, bias=True)) == {"n_head": 3, "bias": True}
    with pytest.raises(ConfigError, match=r"lacks the field n_head \(did you mean \"n_heads\"\?\)"):
        read_fields(table, {"n_heads": 3}, "toy")
    expect_fields({"act": "silu"}, {"act": ("silu",), "other": (1,)}, "toy")
    with pytest.raises(ConfigError, match="act should be 'silu', got 'tanh'"):
        expect_fields({"act": "tanh"}, {"act": ("silu",)}, "toy")
