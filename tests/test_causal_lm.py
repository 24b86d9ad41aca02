"""textgen/model.py, text.py, evaluate.py: words in and out, streaming, recipes, folders, wrong input; the shipped novelist."""
import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gencore
from gencore.attention import AttentionConfig
from gencore.check import CheckpointError, ConfigError, InputError, UnknownNameError
from gencore.layers import MLPConfig
from gencore.loss import chunked_cross_entropy
from gencore.positions import RotaryConfig
from gencore.step_linear import StepLinear
from gencore.tokenizer import train_bpe
from gencore.transformer import TransformerConfig
from textgen import CausalLM
from textgen.evaluate import bits_per_byte, windows
from textgen.model import CausalLMConfig
from textgen.text import Row

STACK = TransformerConfig(width=32, layers=2, attention=AttentionConfig(heads=2), mlp=MLPConfig(48, True, "silu"), rotary=RotaryConfig())
TEXT = "It was a dark night, and the rain fell on the café in the old town. “Who is there?” she asked — nobody.\n\n" * 4


def small(tied=True):
    torch.manual_seed(0)
    tokenizer = train_bpe([TEXT], 300)
    lm = CausalLM(CausalLMConfig(vocab=len(tokenizer), context=48, transformer=STACK, tied=tied, bos=0, eos=(0,), pad=1), tokenizer)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(4)
    return lm.eval()


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "model"
    small().save_pretrained(folder)
    return CausalLM.from_pretrained(folder)


def test_streaming_equals_the_whole(lm, cases):
    @settings(max_examples=cases)
    @given(prompt=st.text("abcnight dré", max_size=12), temperature=st.sampled_from([0.0, 0.7, 2.0]), seed=st.integers(0, 1000),
           stop=st.sampled_from([(), "a", ["ni", "the"]]))
    def holds(prompt, temperature, seed, stop):
        options = {"max_new_tokens": 14, "temperature": temperature, "seed": seed, "stop": stop}
        whole = lm.generate(prompt, **options)
        assert prompt + "".join(lm.stream(prompt, **options)) == whole
        assert not any(text in whole[len(prompt):] for text in ([stop] if isinstance(stop, str) else stop))

    holds()


@settings(max_examples=40)
@given(prompts=st.lists(st.text("abcnight dré", max_size=12), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_a_list_of_prompts_gives_what_each_gives_alone(lm, prompts, seed):
    together = lm.generate(prompts, max_new_tokens=12, seed=seed)
    assert together == [lm.generate(prompt, max_new_tokens=12, seed=seed + row) for row, prompt in enumerate(prompts)]


def test_the_same_seed_gives_the_same_text_and_another_another(lm):
    assert lm.generate("It", seed=3) == lm.generate("It", seed=3) != lm.generate("It", seed=4)


def test_a_text_is_replayed_from_its_recipe(lm, tmp_path):
    text = lm.generate("It was", max_new_tokens=9, seed=11, temperature=1.5, stop="zzz")
    with pytest.raises(InputError, match="can't write .*: there is no folder .*gone, make it first"):
        text.save(tmp_path / "gone" / "a.txt")
    text.save(tmp_path / "a.txt")
    assert gencore.replay(tmp_path / "a.txt") == text
    assert text.recipe.seed == 11 and text.recipe.inputs == {"prompt": "It was"} and text.recipe.settings["temperature"] == 1.5
    second = lm.generate(["It", "was"], max_new_tokens=9, seed=5)[1]
    second.save(tmp_path / "b.txt")
    assert gencore.replay(tmp_path / "b.txt") == second


def test_whole_characters_come_out_and_stop_strings_are_cut():
    tokenizer = train_bpe(["x"], 258)                                     # bytes alone
    row, said = Row(tokenizer, ("END",), ()), []
    for token in tokenizer.encode("né ENd — ENDx"):
        said.append(row.add(token))
    assert "".join(said) == "né ENd — " and row.over
    assert all("\ufffd" not in piece for piece in said)
    row = Row(tokenizer, (), ())
    assert row.add(tokenizer.encode("é")[0]) == "" and row.end() == "\ufffd"      # half a character at the end


def test_the_text_ends_at_the_end_token(lm):
    with torch.no_grad():
        model = small(tied=False)
        model.head.weight.zero_()
        assert model.generate("It", temperature=0, max_new_tokens=5) == "It"         # id 0, the end, is the likeliest of equals
    assert lm.generate("It", max_new_tokens=0) == "It"


def test_texts_may_outgrow_the_context(lm):
    assert max(len(lm.generate("It was", max_new_tokens=120, seed=seed, temperature=1.0).logprobs.ids) for seed in range(3)) > 48
    assert next(lm.stream("It was", max_new_tokens=10 ** 12, seed=0))                            # nothing is made as long as the text may become
    long = "It was a dark night, and the rain fell. " * 20
    assert lm.generate(long, max_new_tokens=3, window=48, seed=0).startswith(long)


@pytest.mark.parametrize("options, words", [
    ({"prompt": "rain " * 200}, r"the prompt has \d+ tokens, the model reads 48: shorten it or use window=48"),
    ({"prompt": 3}, "expected a text as str"), ({"prompt": []}, "expected a text"), ({"prompt": ["a", None]}, "expected a text"),
    ({"prompt": "a\ud800"}, "the text holds half a character"),
    ({"max_new_tokens": -1}, "max_new_tokens"), ({"temperature": -2}, "temperature should be between 0"), ({"window": 99}, "window should be"),
    ({"top_p": 2}, "top_p"), ({"seed": -1}, "seed should be"), ({"seed": "x"}, "seed should be"), ({"stop": [""]}, "stop should be"),
    ({"stop": 5}, "stop should be a text or a list of texts, got 5"), ({"stop": {"a": 1}}, "stop should be"), ({"seed": 2 ** 70}, "seed should be"),
    ({"temperature": float("nan")}, "temperature should be"), ({"temperature": float("nan"), "max_new_tokens": 0}, "temperature should be"),
    ({"beams": 10 ** 6}, "beams should be a whole number between 1 and 256"), ({"beams": 2, "length_penalty": "x"}, "length_penalty should be"),
    *(({name: wrong}, f"{name} should be a whole number") for name in ("window", "max_new_tokens", "beams") for wrong in (1.5, "5", True))])
def test_wrong_input_is_named(lm, options, words):
    with pytest.raises(InputError, match=words):
        lm.generate(**{"prompt": "It", **options})
    if not {"beams", "prompt"} & options.keys():
        with pytest.raises(InputError, match=words):
            lm.stream("It", **options)                               # at the call, before anything is asked of the stream


@pytest.mark.parametrize("call, words", [
    (lambda lm: lm.logprobs("a\ud800"), "the text holds half a character"), (lambda lm: bits_per_byte(lm, ["a\ud800"]), "half a character"),
    *((lambda lm, ids=ids: lm(torch.tensor([ids])), f"ids should be between 0 and 299, got {low} to {high}")
      for ids, low, high in (([0, 300], 0, 300), ([5, -1], -1, 5))),
    (lambda lm: lm.loss(torch.tensor([[300]]), torch.tensor([[1]])), "ids should be between 0 and 299, got 300 to 300"),
    *((lambda lm, target=target: lm.loss(torch.tensor([[3]]), torch.tensor([[target]])), f"targets should be between 0 and 299, .* got {target}")
      for target in (300, -5)),
    (lambda lm: bits_per_byte(lm, TEXT), "expected a list of texts, got one text"), (lambda lm: train_bpe(TEXT, 300), "expected a list of texts"),
    (lambda lm: bits_per_byte(CausalLM(lm.cfg), [TEXT]), "this model has no tokenizer"),
    (lambda lm: lm.tokenizer.decode([5, -1]), "ids should be between 0 and 299, got -1 to 5"),
    (lambda lm: lm(torch.zeros(1, 0).long()), r"ids: expected at least one token, got shape \(1, 0\)"),
])
def test_ids_and_texts_that_can_not_be_are_named(lm, call, words):
    with pytest.raises(InputError, match=words):
        call(lm)


def test_an_empty_prompt_begins_a_text(lm):
    assert lm.generate("", max_new_tokens=4, seed=0) == "".join(lm.stream("", max_new_tokens=4, seed=0))


def test_a_compiled_step_is_made_for_a_power_of_two_and_kept(monkeypatch):
    monkeypatch.setattr("gencore.decode.has_compiler", lambda: False)
    stack = TransformerConfig(width=16, layers=1, attention=AttentionConfig(heads=2), rotary=RotaryConfig())
    model = CausalLM(CausalLMConfig(vocab=9, context=700, transformer=stack)).eval()
    with pytest.warns(UserWarning, match="compiler"):
        caches = [model.fast_stepper(length).cache for length in (3, 256, 257, 600)]
    assert [cache.size for cache in caches] == [256, 256, 512, 700]
    assert caches[0] is caches[1] and model.fast_stepper(701) is None


def test_compiled_steps_forget_weights_that_changed(monkeypatch):
    monkeypatch.setattr("gencore.decode.has_compiler", lambda: False)
    monkeypatch.setattr("warnings.warn", lambda *a, **k: None)
    model = small()
    model.fast_stepper(3)
    head = lambda: next(module for module in model.modules() if isinstance(module, StepLinear))
    for change in (lambda: model.load_state_dict({name: tensor * 0 for name, tensor in model.state_dict().items()}), lambda: head().weight.add_(1)):
        with torch.no_grad():
            change()
        kept = model._compiled[48]
        model.fast_stepper(3)
        torch.testing.assert_close(head().short.float(), head().weight.detach())
        assert model._compiled[48] is not kept
        cache = model.fast_stepper(3).cache
        assert model.fast_stepper(40).cache is cache


def test_dtypes_go_by_name_and_are_in_the_recipe(lm, tmp_path):
    lm.save_pretrained(tmp_path / "tiny")
    small = CausalLM.from_pretrained(tmp_path / "tiny", dtype="bfloat16")
    assert small.embedding.weight.dtype == torch.bfloat16
    with pytest.raises(InputError, match="dtype should be a floating one of torch"):
        CausalLM.from_pretrained(tmp_path / "tiny", dtype="bf16")
    text = small.generate("It was", max_new_tokens=12, seed=3)
    assert text.recipe.settings["dtype"] == "bfloat16"
    text.save(tmp_path / "a.txt")
    assert gencore.replay(tmp_path / "a.txt") == text


def test_a_model_moves_as_modules_do(lm):
    moved = copy.deepcopy(lm)
    assert moved.to("cpu") is moved and moved.generate("It", seed=1) == lm.generate("It", seed=1)
    assert moved.to(torch.bfloat16) is moved and isinstance(moved.generate("It", seed=1), str)


@pytest.mark.parametrize("asked", [{"prompt": ["It", "was"]}, {"window": 8}, {"beams": 2}, {"draft": True}, {"max_new_tokens": 100}])
def test_what_runs_uncompiled_says_so(lm, asked, monkeypatch):
    monkeypatch.setattr(lm, "compile", True)
    asked = asked | {"draft": lm} if "draft" in asked else asked
    with pytest.warns(UserWarning, match="compile=True .*: this call runs uncompiled"):
        lm.generate(**{"prompt": "It", "max_new_tokens": 3, **asked})


def test_a_trainable_copy_has_the_weights_and_leaves_the_model_alone(lm):
    copy, ids = lm.trainable(), torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(copy(ids), lm(ids))
    assert all(p.is_contiguous() and p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        copy.head.weight.zero_()
    assert lm(ids).abs().max() > 0 and copy.tokenizer is lm.tokenizer


def test_training_mode_comes_back():
    lm = small().train()
    lm.generate("It", max_new_tokens=2)
    assert lm.training


# ---- folders ----

@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_folder_gives_the_same_logits_here_and_in_transformers(tied, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = small(tied)
    model.save_pretrained(tmp_path / "m")
    ids = torch.randint(0, model.cfg.vocab, (2, 20))
    again = CausalLM.from_pretrained(tmp_path / "m")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "m"), AutoTokenizer.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        torch.testing.assert_close(again(ids), model(ids), atol=1e-5, rtol=1e-5)
    assert again.cfg == model.cfg
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-5, rtol=1e-5)
    said = theirs.generate(**tokenizer("It was", return_tensors="pt"), max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(said[0], skip_special_tokens=True) == again.generate("It was", max_new_tokens=20, temperature=0)
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"config.json", "generation_config.json", "model.safetensors", "digests.json",
                                                            "tokenizer.json", "tokenizer_config.json"}


def test_loaded_matrices_lie_column_by_column_unless_they_narrow(tmp_path):
    small().save_pretrained(tmp_path / "m")
    block = CausalLM.from_pretrained(tmp_path / "m").transformer.blocks[0]
    assert block.attention.qkv.weight.t().is_contiguous() and block.mlp.down.weight.is_contiguous()
    assert block.mlp.down.out_features < block.mlp.down.in_features


def test_bf16_files_are_half_as_large_and_load_as_float32(tmp_path):
    model = small()
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b", dtype=torch.bfloat16)
    a, b = ((tmp_path / name / "model.safetensors").stat().st_size for name in "ab")
    assert b < 0.6 * a
    assert CausalLM.from_pretrained(tmp_path / "b").embedding.weight.dtype == torch.float32


@pytest.mark.parametrize("change, error, words", [
    ({"hidden_size": 64}, CheckpointError, "should have shape|should be"), ({"num_hidden_layers": 3}, CheckpointError, "blocks.2"),
    ({"num_hidden_layers": 1}, CheckpointError, "blocks.1"), ({"model_type": "lama"}, CheckpointError, 'did you mean "llama"'),
    ({"hidden_act": "relu"}, ConfigError, "hidden_act"), ({"num_attention_heads": "two"}, ConfigError, "num_attention_heads should be int")])
def test_a_configuration_that_does_not_fit_is_refused(change, error, words, tmp_path):
    small().save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, **change}))
    gencore.checkpoint.seal(tmp_path / "m")
    with pytest.raises(error, match=words):
        CausalLM.from_pretrained(tmp_path / "m")


def test_unknown_names_and_wrong_options_are_named(tmp_path):
    with pytest.raises(UnknownNameError, match="novelist"):
        CausalLM.from_pretrained("novellist")
    with pytest.raises(InputError, match='None, "int8" or "int4", got .int3.'):
        CausalLM.from_pretrained("novelist", quantize="int3")
    for device in ("cuba", "cuda:99", "xpu", torch.float32):
        with pytest.raises(InputError, match='^device should be one of this machine, such as "cpu", "cuda" or "mps", got'):
            CausalLM.from_pretrained("novelist", device=device)
    with pytest.raises(InputError, match="no tokenizer"):
        CausalLM(CausalLMConfig(transformer=STACK)).generate("It")


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_few_bits_generate_and_are_not_saved(bits, lm, tmp_path):
    small8 = CausalLM.from_pretrained(lm.name, quantize=bits)
    text = small8.generate("It was", max_new_tokens=8, temperature=0)
    text.save(tmp_path / "a.txt")
    assert gencore.replay(tmp_path / "a.txt") == text and text.recipe.settings["quantize"] == bits
    ids = torch.tensor([small8.tokenizer.encode(TEXT)[:20]])
    loss, count = small8.loss(ids[:, :-1], ids[:, 1:])
    with torch.no_grad():
        wanted = torch.nn.functional.cross_entropy(small8(ids[:, :-1])[0], ids[0, 1:], reduction="sum")
    torch.testing.assert_close(loss, wanted)
    assert int(count) == 19
    assert CausalLM.from_pretrained(lm.name, quantize=bits, dtype="bfloat16").generate("It was", max_new_tokens=3, temperature=0)
    with pytest.raises(InputError, match=f"{bits} weights are for generating"):
        small8.save_pretrained(tmp_path / "m")


# ---- loss and evaluation ----

@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_the_chunked_loss_and_its_gradients_are_the_plain_ones(chunk):
    hidden, weight = torch.randn(23, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    targets = torch.randint(0, 40, (23,))
    targets[::4] = -100
    plain = torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    wanted = torch.autograd.grad(plain * 0.5, (hidden, weight))
    loss, count = chunked_cross_entropy(hidden, weight, targets, chunk=chunk)
    torch.testing.assert_close(loss, plain)
    assert int(count) == 17
    for got, want in zip(torch.autograd.grad(loss * 0.5, (hidden, weight)), wanted):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(chunked_cross_entropy(hidden, weight, targets, chunk=chunk)[0], plain)


@settings(max_examples=200)
@given(length=st.integers(2, 300), context=st.integers(2, 50), overlap=st.floats(0, 0.95))
def test_every_token_is_a_target_once_and_no_window_is_too_long(length, context, overlap):
    rows = windows(length, context, overlap)
    assert [t for _, end, known in rows for t in range(known, end)] == list(range(1, length))
    assert all(end - start - 1 <= context and start < known for start, end, known in rows)


def test_bits_per_byte_of_an_even_guess_are_known(lm):
    model = small(tied=False)
    with torch.no_grad():
        model.head.weight.zero_()
    tokens, size = len(model.tokenizer.encode(TEXT)), len(TEXT.encode())
    for overlap in (0.0, 0.5):
        assert bits_per_byte(model, [TEXT], overlap=overlap) == pytest.approx(tokens * math.log2(model.cfg.vocab) / size, rel=1e-4)


def test_it_overfits_a_sentence():
    from gencore.data import TokenWindows
    from gencore.train import Run, TrainConfig, fit
    model = small()
    ids = torch.tensor(model.tokenizer.encode(TEXT))
    config = TrainConfig(steps=60, batch=4, lr=5e-3, muon_lr=1e-2, warmup=3)

    def loss(model, batch, generator):
        return model.loss(batch["ids"][:, :-1], batch["ids"][:, 1:])

    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        fit(model.train(), loss, TokenWindows(ids, 32, 4), config, run=Run(folder, export=lambda model: model.files(), progress=False))
    assert bits_per_byte(model.eval(), [TEXT]) < 0.4


# ---- the shipped model: figures that change when its weights, or anything under them, change ----

PASSAGE = ("The old man came into the room and shut the door behind him. He did not look at the fire, nor at the table where the supper "
           "had been laid, but stood for a long time at the window with his hands behind his back.\n\n"
           '"You have been to the village," said his daughter at last.\n\n'
           '"I have been to the village," he answered, "and I wish that I had stayed at home."')
GOLDEN_BITS = 0.874
GOLDEN_TEXT = ("It was a dark night, and the rain had come to the door.\n\n"
               "\"I am going to see you,\" said the doctor. \"I am going to")


@pytest.fixture(scope="module")
def novelist():
    return CausalLM.from_pretrained("novelist")


def test_the_novelist_reads_a_passage_as_it_did(novelist):
    assert bits_per_byte(novelist, [PASSAGE]) == pytest.approx(GOLDEN_BITS, abs=0.002)


def test_the_novelist_goes_on_as_it_did(novelist):
    assert novelist.generate("It was a dark night, and the rain", max_new_tokens=24, temperature=0) == GOLDEN_TEXT


def test_the_novelist_opens_in_transformers_with_the_same_greedy_tokens(novelist):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gencore.checkpoint import resolve
    folder = resolve("novelist", "textgen")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    said = theirs.generate(**tokenizer("My dear Watson", return_tensors="pt"), max_new_tokens=40, do_sample=False)
    assert tokenizer.decode(said[0], skip_special_tokens=True) == novelist.generate("My dear Watson", max_new_tokens=40, temperature=0)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_few_bits_cost_the_novelist_little(bits, novelist):
    quick = CausalLM.from_pretrained("novelist", quantize=bits)
    assert bits_per_byte(quick, [PASSAGE]) < bits_per_byte(novelist, [PASSAGE]) + 0.05


def test_two_compiled_texts_that_overlap_are_what_they_are_alone(monkeypatch):
    monkeypatch.setattr("gencore.decode.compiled", lambda function, device: function)
    model = small()
    steppers = [model.fast_stepper(8), model.fast_stepper(8)]
    assert steppers[0] is not None and steppers[1] is None
    del steppers
    assert model.fast_stepper(8) is not None


def test_positions_that_depend_on_the_length_are_not_compiled(monkeypatch):
    monkeypatch.setattr("gencore.decode.compiled", lambda function, device: function)
    scaling = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}
    stack = TransformerConfig(width=16, layers=1, attention=AttentionConfig(heads=2), rotary=RotaryConfig(scaling=scaling))
    assert CausalLM(CausalLMConfig(vocab=9, context=64, transformer=stack)).fast_stepper(8) is None
