"""textgen/masked.py: masks drawn anew, words filled in, a classifier on what was learnt, folders with their tokenizer, wrong input."""
import json
from dataclasses import replace

import pytest
import torch

from gencore.check import DataError, InputError
from gencore.optim import make_optimizer
from gencore.text_encoder import encode_prompts
from gencore.tokenizer import Tokenizer, train_bpe
from gencore.train import TrainConfig
from textgen import MaskedLM, TextClassifier
from textgen.masked import EncoderConfig, bert_stack, mask_tokens, train_masked_tokenizer

SENTENCES = [f"the {animal} {sound} at {place}." for animal, sound in (("dog", "barks"), ("cat", "mews"), ("cow", "moos"), ("owl", "hoots"))
             for place in ("noon", "night", "home", "sea")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_masked_tokenizer(SENTENCES, 300, length=24)


def untrained(tokenizer):
    torch.manual_seed(0)
    stack = replace(bert_stack(width=48, layers=2, heads=4, mlp=96), dropout=0.0)
    return MaskedLM(EncoderConfig(vocab=len(tokenizer), context=24, transformer=stack, dropout=0.0, pad=tokenizer.pad_id), tokenizer)


@pytest.mark.parametrize("beside", [True, False])
def test_roles_of_special_tokens_beside_the_configuration_or_left_to_the_class(beside, tokenizer, tmp_path):
    """Older folders have special_tokens_map.json, the first ones nothing: BERT's own names."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, pre_tokenizers, processors
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "barks"]
    engine = Engine(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.add_special_tokens(words[:5])
    engine.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    named = {"pad_token": "[PAD]", "mask_token": {"content": "[MASK]"}} if beside else {}
    untrained(tokenizer).save_pretrained(tmp_path)
    (tmp_path / "digests.json").unlink()
    (tmp_path / "tokenizer.json").write_text(engine.to_str())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    lm = MaskedLM.from_pretrained(tmp_path)
    assert (lm.tokenizer.pad_id, lm.tokenizer.mask_id, lm.tokenizer.mask) == (0, 4, "[MASK]")
    assert len(lm.fill_mask("the [MASK] barks", topn=3)) == 3
    assert {"[CLS]", "[PAD]"} < {token for token, _ in lm.fill_mask("the [MASK] barks", topn=lm.cfg.vocab)}
    with pytest.raises(InputError, match="no padding token"):
        encode_prompts(Tokenizer(engine, {}), ["the dog"], 8)


def steps(model, loss, count, lr=2e-3):
    optimizer = make_optimizer(model, TrainConfig(lr=lr, muon_lr=None))
    optimizer.set_share(1.0)
    for step in range(count):
        optimizer.zero_grad()
        summed, targets = loss(step)
        (summed / targets).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def lm(tokenizer):
    generator, (ids, keep) = torch.Generator().manual_seed(0), encode_prompts(tokenizer, SENTENCES, 24)[:2]
    model = untrained(tokenizer)
    return steps(model, lambda step: model.loss(*mask_tokens(ids, tokenizer, generator, share=0.3), keep), 400)


def test_masks_are_drawn_as_the_paper_says(tokenizer):
    ids = torch.randint(10, 200, (200, 50))
    ids[:, 0], ids[:, -1] = tokenizer.id("[CLS]"), tokenizer.pad_id
    hidden, targets = mask_tokens(ids, tokenizer, torch.Generator().manual_seed(0))
    asked = targets != -100
    assert torch.equal(targets[asked], ids[asked]) and torch.equal(hidden[~asked], ids[~asked]) and not asked[:, [0, -1]].any()
    assert abs(float(asked[:, 1:-1].float().mean()) - 0.15) < 0.01
    shares = [float((hidden[asked] == tokenizer.mask_id).float().mean()), float((hidden[asked] == ids[asked]).float().mean())]
    assert abs(shares[0] - 0.8) < 0.03 and abs(shares[1] - 0.1) < 0.03
    again, _ = mask_tokens(ids, tokenizer, torch.Generator().manual_seed(1))
    assert not torch.equal(again, hidden)


def test_the_mask_takes_the_space_before_it_along(tokenizer):
    whole, masked = tokenizer.encode("the dog barks at noon.", special=True), tokenizer.encode("the [MASK] barks at noon.", special=True)
    assert len(masked) == len(whole) and sum(a != b for a, b in zip(whole, masked)) == 1
    assert whole[0] == tokenizer.id("[CLS]") and whole[-1] == tokenizer.id("[SEP]")


def test_a_hidden_word_is_filled_in(lm):
    for animal, sound in (("dog", "barks"), ("cat", "mews"), ("cow", "moos"), ("owl", "hoots")):
        word, chance = lm.fill_mask(f"the [MASK] {sound} at noon.")[0]
        assert word == animal and 0.5 < chance <= 1
    both = lm.fill_mask("the [MASK] barks [MASK] noon.", topn=2)
    assert [row[0][0] for row in both] == ["dog", "at"] and all(len(row) == 2 for row in both)


def test_padding_changes_nothing(lm, tokenizer):
    texts = ["the dog barks at noon.", "the owl"]
    ids, keep = encode_prompts(tokenizer, texts, 24)[:2]
    with torch.no_grad():
        together = lm(ids, keep)
        for row, text in enumerate(texts):
            alone, *_ = encode_prompts(tokenizer, [text], 24)
            torch.testing.assert_close(together[row, :alone.shape[1]], lm(alone)[0], atol=1e-5, rtol=1e-5)


def test_a_classifier_learns_on_what_the_encoder_knows(lm, tokenizer, tmp_path):
    labels = ["bird" if "owl" in text else "beast" for text in SENTENCES]
    model = TextClassifier.on(lm.encoder, ["beast", "bird"], tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(model.encoder.state_dict().values(), lm.encoder.state_dict().values(), strict=True))
    ids, keep = encode_prompts(tokenizer, SENTENCES, 24)[:2]
    wanted = torch.tensor([["beast", "bird"].index(label) for label in labels])
    steps(model, lambda step: model.loss(ids, wanted, keep), 40, lr=1e-3)
    assert [label for label, _ in model.classify(SENTENCES)] == labels and model.classify("the owl hoots at sea.")[0] == "bird"
    with pytest.warns(UserWarning, match=r'1 text\(s\) have more than 24 tokens and are cut there, the first: "the owl'):
        model.classify(["the owl hoots. " * 30, "the owl"])
    model.save_pretrained(tmp_path / "classifier")
    assert TextClassifier.from_pretrained(tmp_path / "classifier").classify(SENTENCES) == model.eval().classify(SENTENCES)


def test_a_folder_opens_in_transformers_with_its_tokenizer(lm, tmp_path):
    from transformers import pipeline
    lm.save_pretrained(tmp_path / "lm")
    text = "the [MASK] moos at night."
    theirs = pipeline("fill-mask", model=str(tmp_path / "lm"), tokenizer=str(tmp_path / "lm"), top_k=3)(text)
    ours = MaskedLM.from_pretrained(tmp_path / "lm").fill_mask(text, topn=3)
    assert [found["token_str"].strip() for found in theirs] == [word for word, _ in ours]
    assert all(abs(found["score"] - chance) < 1e-4 for found, (_, chance) in zip(theirs, ours))


@pytest.mark.parametrize("call, error, words", [
    (lambda lm: lm.fill_mask("the dog barks."), InputError, r"the text has no \[MASK\]"),
    (lambda lm: lm.fill_mask("[MASK]\ud800"), InputError, "half a character"),
    (lambda lm: lm(torch.tensor([[-1]])), InputError, "ids should be between 0 and"),
    (lambda lm: lm(torch.tensor([[1]]), types=torch.tensor([[7]])), InputError, "types should be between 0 and 1, got 7"),
    (lambda lm: lm.loss(torch.tensor([[1]]), torch.tensor([[-5]])), InputError, "targets should be between 0 and"),
    (lambda lm: TextClassifier.on(lm.encoder, "ab").loss(torch.tensor([[1]]), torch.tensor([2])), InputError, "targets should be between 0 and 1"),
    (lambda lm: lm.fill_mask("[MASK]", topn=-1), InputError, "topn should be a whole number of at least 1"),
    (lambda lm: lm.fill_mask("[MASK] " * 40), InputError, "tokens are more than the 24 positions"),
    (lambda lm: MaskedLM(lm.cfg).fill_mask("[MASK]"), InputError, "no tokenizer with a mask token"),
    (lambda lm: TextClassifier(lm.cfg), InputError, "at least two labels"),
    (lambda lm: TextClassifier.on(lm.encoder, "ab").classify("x"), InputError, "this model has no tokenizer"),
    (lambda lm: TextClassifier.on(lm.encoder, "ab", lm.tokenizer).classify([]), InputError, r"a list of them, got \[\]"),
    (lambda lm: mask_tokens(torch.zeros(1, 3), train_bpe(["a"], 260), None), DataError, "no mask token")])
def test_wrong_input_is_answered_with_one_sentence(call, error, words, lm):
    with pytest.raises(error, match=words):
        call(lm)


def test_labels_that_are_not_known_do_not_count(tokenizer):
    torch.manual_seed(0)
    model = TextClassifier(replace(untrained(tokenizer).cfg, labels=("yes", "no")), tokenizer).eval()
    ids = torch.randint(5, 30, (2, 6))
    both, alone = model.loss(ids, torch.tensor([0, -100])), model.loss(ids[:1], torch.tensor([0]))
    assert int(both[1]) == int(alone[1]) == 1 and both[0].item() == pytest.approx(alone[0].item(), abs=1e-5)


def test_masks_are_made_where_the_ids_are(tokenizer):
    ids, targets = mask_tokens(torch.zeros(2, 8, dtype=torch.long, device="meta"), tokenizer, torch.Generator())
    assert ids.device.type == targets.device.type == "meta"
