"""Models are opened by a Hub id from huggingface_hub's own cache, offline: found under models--owner--name, with what they said before."""
import os

import pytest
import torch

from gencore.check import CheckpointError
from gencore.tokenizer import train_bpe
from textgen import CausalLM, Chat, MaskedLM, Seq2SeqLM
from textgen.chat import chat_model
from textgen.masked import EncoderConfig, bert_stack, train_masked_tokenizer
from textgen.presets import llama_shape
from textgen.seq2seq import Seq2SeqConfig, train_pair_tokenizer, transformer_stack

TEXTS = ["The rain fell upon the old house by the sea.\n" * 20]
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of huggingface_hub, offline."""
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def store(model, cache, name):
    """Saves a model where a download would lie: its files are links to blobs, refs/main says the revision."""
    place = cache / f"models--owner--{name}"
    folder = place / "snapshots" / REVISION
    model.eval().save_pretrained(folder)
    (place / "blobs").mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = place / "blobs" / f"{number:040x}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(REVISION)
    return f"owner/{name}"


def tiny():
    tokenizer = train_bpe(TEXTS, 300)
    return CausalLM(llama_shape(32, 2, 2, 48, vocab=len(tokenizer), context=64), tokenizer).eval()


def test_a_causal_model_is_opened_by_its_hub_id(cache):
    lm = tiny()
    name, ids = store(lm, cache, "tiny-lm"), torch.randint(300, (2, 9))
    opened = CausalLM.from_pretrained(name)
    with torch.no_grad():
        torch.testing.assert_close(opened(ids), lm(ids), rtol=0, atol=0)
    assert opened.generate("The rain", max_new_tokens=8, seed=0) == lm.generate("The rain", max_new_tokens=8, seed=0)
    with pytest.raises(CheckpointError, match='no folder "owner/tiny-ml" here, and the Hub gave no model'):
        CausalLM.from_pretrained("owner/tiny-ml")


def test_a_chat_is_opened_by_its_hub_id(cache):
    lm, hello = chat_model(tiny()), [{"role": "user", "content": "The rain?"}]
    chat = Chat.from_pretrained(store(lm, cache, "tiny-chat"))
    assert chat(hello, max_new_tokens=8, seed=0) == Chat(lm)(hello, max_new_tokens=8, seed=0)


def test_a_masked_model_is_opened_by_its_hub_id(cache):
    tokenizer = train_masked_tokenizer(TEXTS, 300, 32)
    model = MaskedLM(EncoderConfig(len(tokenizer), 32, transformer=bert_stack(32, 1, 2, 48), pad=tokenizer.pad_id), tokenizer)
    opened = MaskedLM.from_pretrained(store(model, cache, "tiny-bert"))
    assert opened.fill_mask("The [MASK] fell") == model.fill_mask("The [MASK] fell")


def test_a_translator_is_opened_by_its_hub_id(cache):
    tokenizer = train_pair_tokenizer(TEXTS, 300, 32)
    stacks = (transformer_stack(32, 1, 2, 48, cross=cross) for cross in (False, True))
    model = Seq2SeqLM(Seq2SeqConfig(len(tokenizer), 32, *stacks, embedding_scale=32 ** 0.5), tokenizer)
    opened = Seq2SeqLM.from_pretrained(store(model, cache, "tiny-marian"))
    assert opened.generate("The rain", max_new_tokens=8) == model.generate("The rain", max_new_tokens=8)
