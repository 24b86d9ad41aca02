"""gencore/choose.py: each rule against its definition, draws against their frequencies."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gencore.beam import beam_search
from gencore.check import InputError
from gencore.choose import Sampling, chances, choose, draw, guide, narrowed, penalise

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0], [0.0, 0.0, 0.0, 5.0, 4.9]])


def allowed(sampling, logits=LOGITS):
    return [[i for i, p in enumerate(row) if p > 0] for row in narrowed(logits, sampling).tolist()]


def test_temperature_nought_takes_the_likeliest():
    assert choose(LOGITS, Sampling(temperature=0)).tolist() == [4, 3]
    assert choose(LOGITS, Sampling(temperature=1e-40)).tolist() == [4, 3]          # logits / 1e-40 would overflow
    assert choose(LOGITS, Sampling(top_k=1)).tolist() == [4, 3]


def test_draws_have_the_frequencies_of_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(20000, 3)
    ids = choose(logits, Sampling(temperature=0.5), torch.Generator().manual_seed(0))
    wanted = (logits[0] / 0.5).softmax(-1)
    torch.testing.assert_close(ids.bincount(minlength=3) / 20000, wanted, atol=0.01, rtol=0)


def test_top_k_keeps_the_k_likeliest():
    assert allowed(Sampling(top_k=2)) == [[0, 4], [3, 4]]
    assert allowed(Sampling(top_k=99)) == [[0, 1, 2, 3, 4]] * 2


def test_top_p_keeps_the_fewest_that_reach_p_and_always_one():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert allowed(Sampling(top_p=0.5), logits) == [[0]]
    assert allowed(Sampling(top_p=0.6), logits) == [[0, 1]]
    assert allowed(Sampling(top_p=0.81), logits) == [[0, 1, 2]]
    assert allowed(Sampling(top_p=0.0), logits) == [[0]]
    assert allowed(Sampling(top_p=1.0), logits) == [[0, 1, 2, 3]]


def test_top_p_is_taken_of_what_top_k_left():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert allowed(Sampling(top_k=2, top_p=0.5), logits) == [[0]]           # 0.4 of 0.7 is more than half
    assert allowed(Sampling(top_p=0.5), logits) == [[0, 1]]


def test_min_p_is_relative_to_the_likeliest():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert allowed(Sampling(min_p=0.25), logits) == [[0, 1, 2]]
    assert allowed(Sampling(min_p=1.0), logits) == [[0]]


def test_repetition_penalty_makes_seen_tokens_rarer_once_whatever_their_sign():
    seen = torch.tensor([[4, 4, 3, -1], [0, 3, -1, -1]])
    out = penalise(LOGITS, seen, 2.0)
    assert out.tolist() == [[2.0, 1.0, 0.0, -2.0, 1.5], [0.0, 0.0, 0.0, 2.5, pytest.approx(4.9)]]


@settings(max_examples=200)
@given(seed=st.integers(0, 10 ** 6), temperature=st.floats(0.1, 3), top_k=st.none() | st.integers(1, 12),
       top_p=st.none() | st.floats(0, 1), min_p=st.none() | st.floats(0, 1), penalty=st.floats(0.5, 2))
def test_the_narrowing_is_that_of_transformers(seed, temperature, top_k, top_p, min_p, penalty):
    from transformers.generation import logits_process as theirs
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed)) * 3
    seen = torch.randint(0, 12, (3, 5), generator=torch.Generator().manual_seed(seed))
    processors = [theirs.RepetitionPenaltyLogitsProcessor(penalty), theirs.TemperatureLogitsWarper(temperature)]
    processors += [theirs.TopKLogitsWarper(top_k)] if top_k else []
    processors += [theirs.TopPLogitsWarper(top_p)] if top_p is not None and 1e-3 < top_p < 1 else []
    processors += [theirs.MinPLogitsWarper(min_p)] if min_p is not None else []
    wanted = logits
    for process in processors:
        wanted = process(seen, wanted)
    top_p = top_p if top_p is not None and 1e-3 < top_p < 1 else None
    got = narrowed(penalise(logits, seen, penalty), Sampling(temperature, top_k, top_p, min_p))
    torch.testing.assert_close(got / got.sum(-1, keepdim=True), wanted.softmax(-1), atol=1e-6, rtol=1e-5)


@settings(max_examples=300)
@given(seed=st.integers(0, 10 ** 6), rows=st.integers(1, 6), top_p=st.none() | st.floats(0, 1), min_p=st.none() | st.floats(0, 1))
def test_rows_draw_alone_what_they_draw_together(seed, rows, top_p, min_p):
    logits = torch.randn(rows, 40, generator=torch.Generator().manual_seed(seed)) * 4
    sampling = Sampling(temperature=0.7, top_p=top_p, min_p=min_p)
    together = choose(logits, sampling, [torch.Generator().manual_seed(seed + i) for i in range(rows)])
    alone = torch.cat([choose(logits[i:i + 1], sampling, torch.Generator().manual_seed(seed + i)) for i in range(rows)])
    assert together.tolist() == alone.tolist()
    assert all(p > 0 for p in narrowed(logits, sampling).gather(1, together[:, None])[:, 0].tolist())


def test_impossible_tokens_are_never_drawn():
    logits = torch.full((4000, 6), float("-inf"))
    logits[:, 1:3] = 0.0
    assert set(choose(logits, Sampling(), torch.Generator().manual_seed(1)).tolist()) == {1, 2}


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(), Sampling(top_k=2, top_p=0.9, min_p=0.1)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_no_token_is_chosen_from_what_is_no_number(sampling, bad):
    logits = LOGITS.clone()
    logits[1, 2] = bad
    if bad == float("-inf"):                                                       # one is a mask, a whole row leaves no choice
        assert choose(logits, sampling, torch.Generator().manual_seed(0)).shape == (2,)
        logits[1] = bad
    for call in (choose, lambda *given: draw(chances(*given[:2]), given[2])):
        with pytest.raises(InputError, match="no token can be chosen, the logits are NaN, infinite or all masked"):
            call(logits, sampling, torch.Generator().manual_seed(0))


def test_a_beam_search_stops_where_a_logit_is_no_number():
    with pytest.raises(InputError, match="no token can be chosen"):
        beam_search(torch.tensor([[0.0, float("nan")]] * 2), None, beams=2, limit=3, eos=())


def test_guidance_one_is_the_condition_and_nought_is_none():
    cond, null = torch.randn(2, 3, 5)
    torch.testing.assert_close(guide(cond, null, 1.0), cond)
    torch.testing.assert_close(guide(cond, null, 0.0), null)
    torch.testing.assert_close(guide(cond, null, 3.0), null + 3 * (cond - null))


@pytest.mark.parametrize("wrong, words", [
    ({"temperature": -1}, "temperature should be between 0"), ({"top_k": 0}, "top_k should be a whole number"), ({"top_k": 2.5}, "top_k"),
    ({"top_p": 1.5}, "top_p should be between 0 and 1"), ({"min_p": -0.1}, "min_p"), ({"repetition_penalty": 0}, "repetition_penalty")])
def test_wrong_settings_are_named(wrong, words):
    with pytest.raises(InputError, match=words):
        Sampling(**wrong)


def test_chance_needs_a_generator():
    with pytest.raises(InputError, match="needs a generator"):
        choose(LOGITS, Sampling())
