"""textgen/seq2seq.py and gencore/beam.py: torch.nn.Transformer with the same weights, every text tried, a small language learnt, wrong input."""
import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gencore.attention import AttentionConfig
from gencore.beam import beam_search
from gencore.check import InputError
from gencore.data import right_padded
from gencore.layers import MLPConfig, NormConfig
from gencore.masks import causal, padding
from gencore.optim import make_optimizer
from gencore.train import TrainConfig
from gencore.transformer import Memory, Transformer, TransformerConfig
from textgen import Seq2SeqConfig, Seq2SeqLM
from textgen.seq2seq import real_tokens, train_pair_tokenizer, transformer_stack

WORDS = {"rot": "red", "blau": "blue", "haus": "house", "hund": "dog"}
PAIRS = [(f"{a} {b}", f"{WORDS[b]} {WORDS[a]}") for a, b in itertools.product(WORDS, repeat=2)]        # the order turns round


def learnt(model, *, steps, lr):
    """The model after so many steps on all PAIRS."""
    (source, keep), (target, _) = (right_padded([model.tokenizer.encode(pair[i], special=True) for pair in PAIRS], 1) for i in (0, 1))
    optimizer = make_optimizer(model, TrainConfig(lr=lr))
    optimizer.set_share(1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        summed, count = model.train().loss(source, target, keep)
        (summed / count).backward()
        optimizer.step()
    return model.eval()


def small(tokenizer):
    torch.manual_seed(0)
    encoder, decoder = (transformer_stack(32, 2, 4, 64, dropout=0.0, cross=cross) for cross in (False, True))
    return Seq2SeqLM(Seq2SeqConfig(len(tokenizer), 24, encoder, decoder, embedding_scale=32 ** 0.5), tokenizer)


@pytest.fixture(scope="module")
def tokenizer():
    return train_pair_tokenizer([text for pair in PAIRS for text in pair], 290, length=24)


@pytest.fixture(scope="module")
def lm(tokenizer):
    return learnt(small(tokenizer), steps=250, lr=2e-3)


@pytest.mark.parametrize("place", ["pre", "post"])
def test_the_blocks_are_those_of_torch_with_the_same_weights(place):
    """torch.nn.Transformer's encoder and decoder layers, weights copied, padded sources."""
    torch.manual_seed(0)
    pre, options = place == "pre", {"dropout": 0.0, "batch_first": True, "norm_first": place == "pre"}
    norms = [nn.LayerNorm(32) if pre else None for _ in range(2)]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, **options), 2, norms[0], enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 48, **options), 3, norms[1])
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        nn.init.normal_(parameter, std=0.2)
    stack = TransformerConfig(32, 2, AttentionConfig(4, bias=True, out_bias=True), MLPConfig(48, activation="relu", bias=True),
                              NormConfig("layer", place, eps=1e-5))
    ours = Transformer(stack), Transformer(replace(stack, layers=3, cross=32))
    for mine, theirs in zip(ours, (encoder, decoder)):
        mine.load_state_dict(from_torch(theirs.state_dict()))
    x, y, keep = torch.randn(2, 9, 32), torch.randn(2, 7, 32), torch.tensor([[True] * 9, [True] * 5 + [False] * 4])
    wanted = encoder(x, src_key_padding_mask=~keep)
    found = ours[0](x, padding(keep))
    torch.testing.assert_close(found[keep], wanted[keep], atol=1e-5, rtol=1e-5)
    future = nn.Transformer.generate_square_subsequent_mask(7)
    torch.testing.assert_close(ours[1](y, causal(), memory=Memory(found, keep)),
                               decoder(y, wanted, tgt_mask=future, memory_key_padding_mask=~keep, tgt_is_causal=True), atol=1e-5, rtol=1e-5)


def from_torch(state):
    """Names of torch's layers -> ours."""
    ours, cross = {}, any("multihead_attn" in name for name in state)
    names = {"self_attn.in_proj_": "attention.qkv.", "self_attn.out_proj.": "attention.out.", "linear1.": "mlp.up.", "linear2.": "mlp.down.",
             "multihead_attn.out_proj.": "cross.out.", "norm1.": "attention_norm.", "norm2.": "cross_norm." if cross else "mlp_norm.",
             "norm3.": "mlp_norm."}
    for name, tensor in state.items():
        layers, _, rest = name.partition(".")
        if layers == "norm":
            ours[name] = tensor
            continue
        number, _, rest = rest.partition(".")
        if rest.startswith("multihead_attn.in_proj_"):
            kind = rest.removeprefix("multihead_attn.in_proj_")
            ours[f"blocks.{number}.cross.q.{kind}"], ours[f"blocks.{number}.cross.kv.{kind}"] = tensor[:32], tensor[32:]
        else:
            theirs, mine = next(pair for pair in names.items() if rest.startswith(pair[0]))
            ours[f"blocks.{number}.{mine}{rest.removeprefix(theirs)}"] = tensor
    return ours


def test_a_small_language_is_learnt(lm):
    assert lm.generate([german for german, _ in PAIRS]) == [english for _, english in PAIRS]
    assert lm.generate("rot haus", beams=3) == "house red" and lm.generate(["rot haus", "hund blau"], beams=2) == ["house red", "blue dog"]


def test_a_batch_gives_what_each_text_gives_alone(lm):
    texts = ["rot", "hund haus", "blau blau rot hund"]
    for beams in (1, 3):
        assert lm.generate(texts, beams=beams, max_new_tokens=12) == [lm.generate(text, beams=beams, max_new_tokens=12) for text in texts]


def test_the_loss_is_torchs_with_smoothed_targets(tokenizer):
    model, target = small(tokenizer), torch.tensor([[5, 6, 7, 0], [8, 0, 1, 1]])
    source = torch.randint(2, 200, (2, 6))
    assert real_tokens(target, model.cfg).tolist() == [[True] * 4, [True, True, False, False]]
    logits = model.eval()(source, torch.tensor([[1, 5, 6, 7], [1, 8, 0, 1]]))
    for training, smoothing in ((True, 0.1), (False, 0.0)):
        summed, count = model.train(training).loss(source, target)
        wanted = F.cross_entropy(logits.flatten(0, 1), target.masked_fill(target == 1, -100).flatten(), reduction="sum", label_smoothing=smoothing)
        assert count == 6
        torch.testing.assert_close(summed, wanted, atol=1e-4, rtol=1e-5)


def test_several_ends_leave_as_many_texts_running():
    """Three of the four likeliest tokens are ends: two texts of each row go on all the same, in their own row."""
    logits, asked = torch.tensor([[3.0, 2.9, 2.8, 3.1, 0.5, 0.0]]).repeat(4, 1), []

    def step(tokens, rows):
        asked.append((tokens.tolist(), rows.tolist()))
        return logits

    found = beam_search(logits, step, beams=2, limit=3, eos=(0, 1, 2), length_penalty=1.0)
    assert asked[0] == ([3, 4, 3, 4], [0, 0, 2, 2]) and all(min(tokens) >= 3 for tokens, _ in asked)
    assert found[0] == found[1] and len(found[0]) == 2


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
def test_a_beam_as_wide_as_everything_finds_the_best_text(penalty):
    """Four tokens, texts of at most four: 85 beams hold every text, so the search must find the best of all."""
    torch.manual_seed(0)
    table, limit = torch.randn(1000, 4).log_softmax(-1), 4

    def chances(text):
        return table[sum((token + 1) * 5 ** i for i, token in enumerate(text)) % 1000]

    state = [[] for _ in range(85)]

    def step(tokens, rows):
        state[:] = [[*state[row], int(token)] for token, row in zip(tokens, rows.tolist())]
        return torch.stack([chances(text) for text in state])

    found = beam_search(torch.stack([chances([])] * 85), step, beams=85, limit=limit, eos=(0,), length_penalty=penalty)[0]
    texts = [text for n in range(1, limit + 1) for text in itertools.product(range(4), repeat=n)
             if 0 not in text[:-1] and (text[-1] == 0 or n == limit)]
    scores = {text: sum(float(chances(text[:i])[token]) for i, token in enumerate(text)) / len(text) ** penalty for text in texts}
    best = max(scores, key=scores.get)
    assert tuple(found[0][1]) == best and found[0][0] == pytest.approx(scores[best], abs=1e-5)
    assert [score for score, _ in found] == sorted((score for score, _ in found), reverse=True)


def test_no_rows_give_no_logits(lm):
    nothing = torch.zeros(0, 3, dtype=torch.long)
    assert lm(nothing, nothing).shape == (0, 3, lm.cfg.vocab)


@pytest.mark.parametrize("call, words", [
    (lambda lm: lm.generate(""), None), (lambda lm: lm.generate([]), r"a list of them, got \[\]"),
    (lambda lm: lm.generate("rot\ud800"), "half a character"),
    (lambda lm: lm(torch.tensor([[999]]), torch.tensor([[0]])), "ids should be between 0 and"),
    (lambda lm: lm.generate("rot", beams=0), "beams should be a whole number between 1 and 256, got 0"),
    (lambda lm: lm.generate("rot", max_new_tokens=99), "max_new_tokens should be a whole number between 1 and 24"),
    (lambda lm: lm.generate("rot " * 40), "tokens are more than the 24 that this model reads"),
    (lambda lm: Seq2SeqLM(lm.cfg).generate("rot"), "this model has no tokenizer")])
def test_wrong_input_is_answered_with_one_sentence(call, words, lm):
    if words is None:
        assert isinstance(call(lm), str)                                          # an empty text is its end alone
        return
    with pytest.raises(InputError, match=words):
        call(lm)


def test_a_folder_opens_in_transformers_with_the_same_text(lm, tmp_path):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    lm.save_pretrained(tmp_path)
    theirs, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    made = theirs.generate(**tokenizer("hund rot", return_tensors="pt"), num_beams=3, max_new_tokens=12)
    assert tokenizer.decode(made[0], skip_special_tokens=True).strip() == Seq2SeqLM.from_pretrained(tmp_path).generate("hund rot", beams=3)


def test_the_end_is_learnt_where_it_is_the_padding_as_well():
    cfg = replace(Seq2SeqConfig(), eos=(0,), pad=0)
    assert real_tokens(torch.tensor([[5, 6, 0, 0, 0], [0, 0, 0, 0, 0]]), cfg).tolist() == [[True] * 3 + [False] * 2, [True] + [False] * 4]
