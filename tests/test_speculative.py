"""gencore/speculative.py: chances against the large model's own by a chi-square test, greedy tokens, caches that go back, wrong drafts."""
import copy
import itertools

import pytest
import torch

import gencore
from gencore.cache import Cache, FixedCache, RollingCache
from gencore.check import InputError
from gencore.choose import Sampling, chances
from gencore.speculative import Reader, Tally, speculate
from gencore.transformer import TransformerConfig
from tests.test_causal_lm import STACK, small
from textgen import CausalLM
from textgen.run import odds_of

V, TOKENS, RUNS = 3, 3, 700


def table_model(seed):
    """A model whose logits depend on the token read and the place: forward(ids (1,T), cache) -> (1,T,V)."""
    table = torch.randn(TOKENS + 9, V, V, generator=torch.Generator().manual_seed(seed)) * 1.5

    def forward(ids, *, cache):
        places = cache.length + torch.arange(ids.shape[1])
        cache.advance(ids.shape[1])
        return table[places, ids[0]][None]

    return table, Reader(forward, Cache(TransformerConfig(width=4, layers=1), 1, TOKENS + 9))


def counted(large, small, sampling):
    """How often each text of TOKENS tokens after [0, 0] was said."""
    counts, tally, generator = dict.fromkeys(itertools.product(range(V), repeat=TOKENS), 0), Tally(), torch.Generator().manual_seed(0)
    for _ in range(RUNS):
        for reader in (large, small):
            reader.cache.length = 1
        said = speculate(large, small, [0, 0], odds_of(sampling), generator=generator, tally=tally)
        counts[tuple(token for token, _ in itertools.islice(said, TOKENS))] += 1
    return counts, tally


def expected(table, sampling):
    """The same, by multiplying the model's own chances."""
    wanted = {}
    for text in itertools.product(range(V), repeat=TOKENS):
        chance = float(RUNS)
        for place, (before, token) in enumerate(zip((0, *text), text)):
            seen = torch.tensor([[0, 0, *text[:place]]])
            chance *= float(chances(table[1 + place, before][None], sampling, seen=seen)[0, token])
        wanted[text] = chance
    return wanted


def surprise(counts, wanted):
    """Probability of counts as odd as these, by the chi-square test; texts of less than five expected are one."""
    from scipy.stats import chi2
    rare = [text for text in wanted if wanted[text] < 5]
    pairs = [(counts[text], wanted[text]) for text in wanted if text not in rare]
    if sum(wanted[text] for text in rare) > 1:
        pairs.append((sum(counts[text] for text in rare), sum(wanted[text] for text in rare)))
    return float(chi2.sf(sum((seen - due) ** 2 / due for seen, due in pairs), len(pairs) - 1))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.4, top_p=0.9, repetition_penalty=1.5)])
def test_the_chances_are_the_large_models_own(sampling):
    (table, large), (other, small) = table_model(1), table_model(2)
    counts, tally = counted(large, small, sampling)
    assert surprise(counts, expected(table, sampling)) > 0.001
    assert surprise(counts, expected(other, sampling)) < 1e-9 and 0.2 < tally.accepted / tally.proposed < 0.9     # it had much to reject


def test_its_own_guesses_all_stand():
    table, large = table_model(1)
    counts, tally = counted(large, Reader(large.forward, Cache(TransformerConfig(width=4, layers=1), 1, TOKENS + 9)), Sampling())
    assert tally.accepted == tally.proposed > RUNS and surprise(counts, expected(table, Sampling())) > 0.001


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model, and one whose weights are a little off."""
    folder, models = tmp_path_factory.mktemp("pair"), (small(), small())
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.2)
    for name, model in zip(("large", "small"), models):
        model.save_pretrained(folder / name)
    return tuple(CausalLM.from_pretrained(folder / name) for name in ("large", "small"))


def test_greedy_tokens_are_the_same_and_as_likely(pair):
    lm, draft = pair
    shares = []
    for prompt, penalty in itertools.product(["It was", "the rain", "a", "d"], [1.0, 1.3]):
        options = {"max_new_tokens": 24, "temperature": 0, "repetition_penalty": penalty}
        plain, quick = lm.generate(prompt, **options), lm.generate(prompt, draft=draft, **options)
        assert quick.logprobs.ids == plain.logprobs.ids and quick == plain and plain.acceptance is None
        assert quick.logprobs.values == pytest.approx(plain.logprobs.values, abs=1e-4)
        shares.append(quick.acceptance)
    assert 0.05 < sum(shares) / len(shares) < 0.95
    assert lm.generate("It was", draft=lm, max_new_tokens=24, temperature=0).acceptance == 1


def test_drawn_texts_stream_stop_and_are_replayed(pair, tmp_path):
    lm, draft = pair
    options = {"max_new_tokens": 20, "temperature": 0.9, "seed": 3, "draft": draft}
    text = lm.generate("It was", **options)
    assert "It was" + "".join(lm.stream("It was", **options)) == text and 0 < text.acceptance < 1
    assert lm.generate("It was", stop=text[9:12], **options) == text[:text.index(text[9:12], 6)]
    text.save(tmp_path / "a.txt")
    assert gencore.replay(tmp_path / "a.txt") == text
    assert text.recipe.settings["draft"] == {"model": draft.name, "digest": draft.digest, "quantize": None}
    assert lm.generate("It was", max_new_tokens=3, draft=small()).recipe is None          # of a draft without a folder
    rounded = CausalLM.from_pretrained(draft.name, dtype=torch.bfloat16)
    text = lm.generate("It was", max_new_tokens=20, temperature=0.9, seed=3, draft=rounded)
    text.save(tmp_path / "b.txt")
    assert text.recipe.settings["draft"]["dtype"] == "bfloat16" and gencore.replay(tmp_path / "b.txt") == text


@pytest.mark.parametrize("kind", [Cache, FixedCache])
def test_a_cache_goes_back(kind):
    lm, cache = small().double(), kind(STACK, 1, 20, dtype=torch.float64)
    ids = torch.randint(2, 300, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        lm(torch.cat([ids[:, :5], ids.flip(1)[:, :6]], 1), cache=cache)
        cache.crop(5)
        torch.testing.assert_close(lm(ids[:, 5:], cache=cache), lm(ids)[:, 5:], atol=1e-9, rtol=1e-7)
    assert int(cache.length) == 12


def test_a_cache_does_not_go_back_further_than_it_can():
    with pytest.raises(InputError, match="the cache holds 0 positions: it can't go back to 3"):
        Cache(STACK, 1, 20).crop(3)
    rolling = RollingCache(STACK, 1, 20)
    rolling.advance(3)
    with pytest.raises(InputError, match="a rolling cache has let go of what came before: it can't go back, but to 0"):
        rolling.crop(1)
    rolling.crop(0)                                     # forgets everything
    assert rolling.length == rolling.first == 0


def test_wrong_drafts_are_named(pair):
    lm, draft = pair
    foreign = copy.copy(draft)
    foreign.tokenizer = gencore.tokenizer.train_bpe(["other words"], 258)
    for prompt, options, words in (("It", {"draft": "novelist"}, "draft should be a CausalLM, got str"),
                                   ("It", {"draft": foreign}, "should share a tokenizer"),
                                   (["It", "a"], {"draft": draft}, "one prompt at a time, got 2"),
                                   ("It", {"draft": draft, "beams": 2}, "leave out one of them"),
                                   ("It", {"draft": draft, "max_new_tokens": 99}, "together, a draft takes at most 48")):
        with pytest.raises(InputError, match=words):
            lm.generate(prompt, **options)
