"""gencore/decode.py: properties that hold for any model, prompt and cache; codebooks, guidance, compiling."""
import warnings

import pytest
import torch
import torch._inductor.config as inductor
from hypothesis import given, settings
from hypothesis import strategies as st

from gencore.attention import AttentionConfig
from gencore.cache import Cache, FixedCache, RollingCache
from gencore.choose import Sampling
from gencore.decode import CompiledStep, Stepper, compiled, decode, guided, left_padded, make_cache, pick_by_pattern, picker, resting
from gencore.int4 import Int4Linear, int4_linears
from gencore.int8 import Int8Linear, int8_linears
from gencore.layers import MLPConfig
from gencore.masks import padding, window
from gencore.patterns import delay
from gencore.positions import RotaryConfig
from gencore.step_linear import StepLinear, step_linears
from gencore.transformer import TransformerConfig
from textgen.model import CausalLM, CausalLMConfig

STACK = TransformerConfig(width=16, layers=2, attention=AttentionConfig(heads=2, kv_heads=1), mlp=MLPConfig(24, True, "silu"), rotary=RotaryConfig())
CFG = CausalLMConfig(vocab=30, context=24, transformer=STACK, tied=False)
EXACT = {"atol": 1e-9, "rtol": 1e-7}

torch.manual_seed(0)
LM = CausalLM(CFG).double().eval().requires_grad_(False)
for parameter in LM.parameters():
    parameter.mul_(8)                                    # sharp attention: a wrong mask can't hide
PROMPT = st.lists(st.integers(0, 29), min_size=1, max_size=20)


def cache_of(size, batch=1, kind=Cache):
    return kind(STACK, batch, size, dtype=torch.float64)


def continued(prompt, forced, stepper, chunk=None):
    """Logits after the prompt and after each forced token (B,1+n,V)."""
    out = [stepper.prefill(torch.tensor(prompt), chunk=chunk)]
    out += [stepper.step(torch.tensor(tokens)) for tokens in forced]
    return torch.stack(out, 1)


def check_cache_equals_no_cache(prompt, forced):
    whole = LM(torch.tensor([prompt + forced]))[:, len(prompt) - 1:]
    for kind in (Cache, FixedCache):
        got = continued([prompt], [[t] for t in forced], Stepper(LM.last_logits, cache_of(40, kind=kind)))
        torch.testing.assert_close(got, whole, **EXACT)


def check_chunks_equal_the_whole(prompt, chunk):
    whole = Stepper(LM.last_logits, cache_of(40)).prefill(torch.tensor([prompt]))
    parts = Stepper(LM.last_logits, cache_of(40)).prefill(torch.tensor([prompt]), chunk=chunk)
    torch.testing.assert_close(parts, whole, **EXACT)


def check_batched_prompts_equal_single_ones(prompts, forced):
    """Left padding changes nothing either: the batch is padded, the single ones are not."""
    ids, keep = left_padded(prompts, 7, extra=len(forced))
    together = continued(ids.tolist(), [[t] * len(prompts) for t in forced], Stepper(LM.last_logits, cache_of(40, len(prompts)), keep=keep))
    for row, prompt in enumerate(prompts):
        alone = continued([prompt], [[t] for t in forced], Stepper(LM.last_logits, cache_of(40)))
        torch.testing.assert_close(together[row:row + 1], alone, **EXACT)


def check_rolling_window_equals_the_mask(prompt, forced, width, chunk):
    text = prompt + forced
    whole = LM(torch.tensor([text]), mask=window(width))[:, len(prompt) - 1:]
    rolling = RollingCache(STACK, 1, width, chunk=chunk, dtype=torch.float64)
    got = continued([prompt], [[t] for t in forced], Stepper(LM.last_logits, rolling, within=width), chunk)
    torch.testing.assert_close(got, whole, **EXACT)


def check_padding_and_window_together(prompts, forced, width):
    ids, keep = left_padded(prompts, 7, extra=len(forced))
    text = torch.cat([ids, torch.tensor([forced] * len(prompts), dtype=torch.long)], 1)
    positions = (torch.arange(text.shape[1]) - (~keep).sum(1, keepdim=True)).clamp(min=0)
    whole = LM(text, mask=window(width) & padding(keep), positions=positions)[:, ids.shape[1] - 1:]
    rolling = RollingCache(STACK, len(prompts), width, chunk=width, dtype=torch.float64)
    stepper = Stepper(LM.last_logits, rolling, keep=keep, within=width)
    got = continued(ids.tolist(), [[t] * len(prompts) for t in forced], stepper, width)
    torch.testing.assert_close(got, whole, **EXACT)


PROPERTIES = {
    check_cache_equals_no_cache: {"prompt": PROMPT, "forced": st.lists(st.integers(0, 29), max_size=12)},
    check_chunks_equal_the_whole: {"prompt": PROMPT, "chunk": st.integers(1, 21)},
    check_batched_prompts_equal_single_ones: {"prompts": st.lists(PROMPT, min_size=1, max_size=4),
                                              "forced": st.lists(st.integers(0, 29), max_size=6)},
    check_rolling_window_equals_the_mask: {"prompt": PROMPT, "forced": st.lists(st.integers(0, 29), max_size=20),
                                           "width": st.integers(1, 9), "chunk": st.integers(1, 9)},
    check_padding_and_window_together: {"prompts": st.lists(PROMPT, min_size=1, max_size=3), "forced": st.lists(st.integers(0, 29), max_size=12),
                                        "width": st.integers(1, 9)},
}


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_property(check, cases):
    settings(max_examples=cases)(given(**PROPERTIES[check])(check))()


def test_the_loop_yields_and_stops_when_every_row_has_ended():
    said = torch.tensor([[3, 9, 9, 9], [3, 3, 9, 3]])                     # 9 ends a row
    got = list(decode(torch.tensor(0), lambda tokens: None, lambda logits, n: said[:, n], limit=4, ended=lambda tokens: tokens == 9))
    assert torch.stack(got, 1).tolist() == said[:, :3].tolist()
    assert len(list(decode(None, lambda tokens: None, lambda logits, n: said[:, n], limit=2))) == 2
    assert list(decode(None, None, None, limit=0)) == []


def test_no_step_is_run_after_the_last_token():
    steps = []
    list(decode(None, steps.append, lambda logits, n: n, limit=3))
    assert steps == [0, 1]


def test_repetition_penalty_counts_the_prompt_and_what_was_said():
    pick = picker(Sampling(temperature=0, repetition_penalty=100.0), seen=torch.tensor([[2, -1]]))
    logits = torch.tensor([[1.0, 3.0, 4.0, 2.0]])
    assert [int(pick(logits, n)) for n in range(3)] == [1, 3, 0]          # 2 was in the prompt


def test_codebooks_follow_their_pattern_and_draw_by_row():
    pattern, filler = delay(3), 5
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))

    def codes(rows):
        pick = pick_by_pattern(picker(Sampling(), [torch.Generator().manual_seed(i) for i in rows]), pattern, filler)
        steps = list(decode(logits[rows], lambda tokens: logits[rows], pick, limit=pattern.steps(4)))
        return torch.stack(steps, -1)                                     # (B, K, S)

    steps = codes([0, 1])
    assert (steps[:, 1, 0] == filler).all() and (steps[:, 2, :2] == filler).all() and (steps[:, 0] != filler).all()
    assert pattern.gather(steps).shape == (2, 3, 4) and (pattern.gather(steps) < 5).all()
    assert torch.equal(codes([1])[0], steps[1])


def test_guidance_runs_both_halves_in_one_batch():
    def step(tokens):
        assert tokens.tolist() == [1, 2, 1, 2]
        return torch.tensor([[1.0, float("-inf")], [2.0, 0.0], [0.5, float("-inf")], [1.0, 0.0]])

    first, both = guided(step(torch.tensor([1, 2, 1, 2])), step, 2.0)
    for logits in (first, both(torch.tensor([1, 2]))):
        assert logits[:, 0].tolist() == [1.5, 3.0] and logits[0, 1] < -1e8 and logits[1, 1] == 0


def test_the_cache_rolls_only_beyond_the_context():
    like = torch.zeros(1)
    assert make_cache(STACK, 1, 24, context=24, like=like)[1] is None
    cache, within = make_cache(STACK, 1, 25, context=24, like=like)
    assert isinstance(cache, RollingCache) and within == 24


def test_int8_linears_stay_near():
    torch.manual_seed(0)
    lm = CausalLM(CFG).eval()
    ids = torch.randint(0, 30, (1, 12))
    with torch.no_grad():
        before = lm(ids)
        after = int8_linears(lm)(ids)
    assert 0 < (after - before).abs().max() < 0.05 * before.abs().max()
    assert not any(type(module) is torch.nn.Linear for module in lm.modules())


def test_int4_weights_are_the_nearest_of_sixteen_and_other_sizes_stay():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 96)
    layer, x = Int4Linear(linear), torch.randn(2, 5, 64)
    groups = linear.weight.detach().view(96, 2, 32)
    step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    nearest = groups.amin(-1, keepdim=True) + ((groups - groups.amin(-1, keepdim=True)) / step).round() * step
    wanted = torch.nn.functional.linear(x, nearest.view(96, 64), linear.bias)
    torch.testing.assert_close(layer(x), wanted, atol=0.02, rtol=0.01)                    # bfloat16 within
    assert (layer(x) - linear(x)).abs().max() > 3 * (layer(x) - wanted).abs().max()
    stack = int4_linears(torch.nn.Sequential(torch.nn.Linear(64, 40), torch.nn.Linear(64, 32)))
    assert [type(module) for module in stack] == [torch.nn.Linear, Int4Linear]


@pytest.mark.parametrize("bias", [True, False])
def test_compiled_rows_are_multiplied_in_the_fewest_bits_that_hold_the_weights(bias):
    torch.manual_seed(0)
    exact, other, x = torch.nn.Linear(48, 32, bias), torch.nn.Linear(48, 32, bias), torch.randn(1, 1, 48)
    exact.weight.data = exact.weight.data.bfloat16().float()
    stack = step_linears(torch.nn.ModuleList([exact, other]))
    assert [layer.short.dtype for layer in stack] == [torch.bfloat16, torch.float32] and all(isinstance(layer, StepLinear) for layer in stack)
    assert stack.state_dict().keys() == torch.nn.ModuleList([exact, other]).state_dict().keys()           # it is saved as it was
    eight = Int8Linear(other)
    with torch.inference_mode():
        fast = compiled(lambda x: tuple(layer(x) for layer in (*stack, eight)))
        for plain, product in zip((exact, other), fast(x)):
            torch.testing.assert_close(product, plain(x), atol=1e-6, rtol=1e-5)
        rounded = torch.nn.functional.linear(x, eight.weight * eight.scales[:, None], other.bias)
        torch.testing.assert_close(fast(x)[2], rounded, atol=1e-6, rtol=1e-5)
        assert ((eight.weight * eight.scales[:, None] - other.weight).abs() <= eight.scales[:, None] * 0.51).all()


def test_steps_read_weights_that_have_changed_when_they_are_made_anew():
    stack = step_linears(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    with torch.no_grad():
        stack[0].weight.fill_(0.5)
    assert (step_linears(stack)[0].short == 0.5).all() and stack[0].short.dtype == torch.bfloat16


def test_compiled_functions_of_one_code_do_not_share_what_they_compiled():
    with torch.inference_mode():
        def times(factor):
            return compiled(lambda x: x * factor)

        doubled, halved = times(torch.tensor(2.0)), times(torch.tensor(0.5))
        assert doubled(torch.ones(1)) == 2 and halved(torch.ones(1)) == 0.5 and doubled(torch.ones(1)) == 2


def test_a_compiler_that_does_not_work_is_named_and_it_goes_on(monkeypatch, tmp_path):
    broken = tmp_path / "g++"
    broken.write_text('#!/bin/sh\n[ "$1" = "--version" ] && exit 0\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with inductor.patch({"cpp.cxx": (None, str(broken))}):
        fast, x = compiled(lambda ids: (ids.float() + 1).exp().sum()), torch.tensor([3, 4])
        with pytest.warns(UserWarning, match="could not compile this model .*: going on uncompiled"):
            assert fast(x) == (x.float() + 1).exp().sum()
        assert fast(x + 1) == (x.float() + 2).exp().sum()


def test_without_a_compiler_it_says_so_once_and_goes_on():
    def function(ids):
        return ids

    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.warns(UserWarning, match="needs a C\\+\\+ compiler, .*none was found"):
        assert compiled(function) is function
    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        lm = CausalLM(CFG).eval()
        fast = CompiledStep(lm.last_logits, STACK, 24, like=torch.zeros(1))
        with torch.inference_mode():
            ids = torch.tensor([[3, 4, 5]])
            for _ in range(2):                                            # the second text begins on the same cache
                stepper = fast.stepper()
                stepper.prefill(ids[:, :2])
                torch.testing.assert_close(stepper.step(ids[:, 2]), lm(ids)[:, -1])
                del stepper                                               # its text is over
    assert len(heard) == 1


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [lambda lm: lm, step_linears, int8_linears])
def test_compiled_steps_say_the_same_tokens(prepare):
    torch.manual_seed(0)
    lm = prepare(CausalLM(CFG).eval().requires_grad_(False))
    with torch.inference_mode():
        fast = CompiledStep(lm.last_logits, STACK, 24, like=torch.zeros(1))
        for prompt in ([3, 4, 5], [9, 1]):
            runs = []
            for stepper in (fast.stepper(), Stepper(lm.last_logits, Cache(STACK, 1, 24))):
                first = stepper.prefill(torch.tensor([prompt]))
                runs.append([int(t) for t in decode(first, stepper.step, picker(Sampling(temperature=0)), limit=15)])
            assert runs[0] == runs[1]


def test_a_repetition_penalty_sees_the_prompt_and_all_that_was_said():
    seen, pick = [], picker(Sampling(temperature=0, repetition_penalty=1e3), seen=torch.tensor([[3, -1]]))
    for n in range(4):
        seen.append(int(pick(torch.tensor([[1.0, 2.0, 3.0, 9.0, 0.5]]), n)))
    assert seen == [2, 1, 0, 4]


def test_guidance_in_half_precision_and_with_what_is_forbidden():
    logits = torch.tensor([[1.0, -torch.inf], [0.5, -torch.inf]], dtype=torch.float16)
    first, _ = guided(logits, None, 3.0)
    assert first.dtype == torch.float32 and first[0, 0] == 2.0 and first[0, 1] < -1e8


def test_a_model_rests_until_the_last_of_several_is_done():
    model = torch.nn.Dropout()
    one, two = resting(model), resting(model)
    one.__enter__(), two.__enter__()
    one.__exit__(None, None, None)
    assert not model.training
    two.__exit__(None, None, None)
    assert model.training
    with resting(model.eval()):
        pass
    assert not model.training


@pytest.mark.parametrize("whole, error", [(True, 0.01), (False, 0.02)])
def test_rows_of_a_batch_in_int8_are_what_they_are_alone(whole, error, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("gencore.int8.multiplies_int8", lambda: whole)                                    # with VNNI, and without
    linear = torch.nn.Linear(40, 24)
    small, x = Int8Linear(linear), torch.randn(5, 3, 40) * torch.tensor([0.01, 1.0, 30.0, 1.0, 0.0])[:, None, None]
    together = small(x)
    assert all(torch.equal(together[i:i + 1, j:j + 1], small(x[i:i + 1, j:j + 1])) for i in range(5) for j in range(3))
    right = linear(x)
    assert ((together - right).norm(dim=-1) < error * right.norm(dim=-1) + 1e-6).all()
    rounded = torch.nn.functional.linear(x, small.weight * small.scales[:, None], linear.bias)            # both of the same weights
    assert ((together - rounded).norm(dim=-1) < error * right.norm(dim=-1) + 1e-6).all() and not torch.equal(together, rounded)
    assert small(x.bfloat16()).dtype == torch.bfloat16


def test_a_compiled_row_in_int8_keeps_its_dtype(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert Int8Linear(torch.nn.Linear(8, 4))(torch.randn(1, 1, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_step_linears_of_another_dtype_read_their_weights_anew():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4))
    step_linears(module).to(torch.bfloat16)
    with torch.no_grad():
        module[0].weight.add_(1)
    assert torch.equal(step_linears(module)[0].short, module[0].weight)
