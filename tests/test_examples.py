"""Every example answers --help at once and says what it takes; the quickstart makes what it says, in under a minute."""

import json
import os
import re
import subprocess
import sys
import time
import wave

import pytest
from PIL import Image

import gencore
from gencore.tokenizer import Tokenizer
from tests.scripts import EXAMPLES, ROOT, run
from textgen import AttentionSeq2Seq, MaskedLM, Seq2SeqLM, Word2Vec, load_word2vec

TEXT = EXAMPLES / "text"
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in EXAMPLES.glob("**/*.py"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(folder, what was printed, seconds) of one quickstart in its own process: its CPU time where others keep the machine busy."""
    folder, begun, used = tmp_path_factory.mktemp("demo"), time.perf_counter(), os.times().children_user
    done = subprocess.run([sys.executable, EXAMPLES / "quickstart.py", "--out", folder], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout, min(time.perf_counter() - begun, os.times().children_user - used)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_explains_itself(script, help_of):
    words = help_of(script)
    assert "usage:" in words and len(words) > 300
    if "/train_" in script:
        assert "--data" in words and "--resume" in words


def test_a_tokenizer_is_trained_and_reported(tmp_path):
    (tmp_path / "rain.txt").write_text("The rain fell upon the roof of the old house, and nobody was understanding it.\n" * 40, encoding="utf-8")
    run(TEXT / "tokenizer.py", "--data", tmp_path, "--out", tmp_path / "tokenizer", "--vocab", "330")
    said = (tmp_path / "tokenizer" / "report.txt").read_text()
    assert re.search(r"^byte pairs +\d\d\d +[\d.]+ +[\d.]+ +0.00%$", said, re.M) and "u n d e r" in said
    assert (tmp_path / "tokenizer" / "sizes.png").is_file() and Tokenizer.from_folder(tmp_path / "tokenizer").encode("rain")


@pytest.mark.parametrize("kind", ["transformer", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("attention", "recurrent"))])
def test_a_translator_learns_and_draws(kind, tmp_path):
    (tmp_path / "pairs.tsv").write_text("".join(f"{n} {n + 1}\t{n + 1} {n}\n" for n in range(60)), encoding="utf-8")
    run(TEXT / "translate.py", "--data", tmp_path / "pairs.tsv", "--model", kind, "--out", tmp_path / "run",
        "vocab=270", "width=32", "layers=1", "mlp=64", "hidden=32", "train.steps=6", "train.batch=16", "train.warmup=1", "train.eval_every=3")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["held_out_loss"] < rows[2]["held_out_loss"] and (tmp_path / "run" / "samples" / "000006.txt").is_file()
    assert (tmp_path / "run" / "samples" / "000006-alignment.png").is_file() == (kind != "recurrent")
    opened = (Seq2SeqLM if kind == "transformer" else AttentionSeq2Seq).from_pretrained(tmp_path / "run" / "model")
    assert isinstance(opened.generate("3 4", max_new_tokens=8), str)


def test_word_vectors_are_learnt_and_drawn(tmp_path):
    (tmp_path / "rain.txt").write_text("The rain fell on the house. The snow fell on the roof. A cat sat in the house.\n" * 80, encoding="utf-8")
    said = run(TEXT / "word_vectors.py", "--data", tmp_path, "--out", tmp_path / "vectors", "--words", "rain",
               "width=8")
    assert re.search(r"rain: \w+, \w+", said) and (tmp_path / "vectors" / "space.png").is_file()
    assert "snow" in Word2Vec.from_pretrained(tmp_path / "vectors") and "snow" in load_word2vec(tmp_path / "vectors" / "vectors.bin", binary=True)


def test_masks_are_filled_in(tmp_path):
    (tmp_path / "rain.txt").write_text("The rain fell upon the old house.\n" * 200, encoding="utf-8")
    run(TEXT / "fill_mask.py", "--data", tmp_path, "--out", tmp_path / "run", "vocab=290", "width=32",
        "layers=1", "mlp=64", "context=16", "train.steps=60", "train.batch=16", "train.warmup=1",
        "train.lr=1e-2", "train.eval_every=10", "--ask", "The [MASK] fell")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["filled_in_right"] > rows[9]["filled_in_right"]
    with Image.open(tmp_path / "run" / "samples" / "000060-attention.png") as picture:
        assert picture.width > 2 * picture.height                                   # four heads side by side
    assert len(MaskedLM.from_pretrained(tmp_path / "run" / "model").fill_mask("The [MASK] fell")) == 5


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """A tiny language model, taught conversations from a file by LoRA, in the run folder that the example leaves."""
    from gencore.tokenizer import train_bpe
    from textgen import CausalLM
    from textgen.presets import llama_shape
    folder = tmp_path_factory.mktemp("talks")
    tokenizer = train_bpe(["Hello. Good day to you, said the inn-keeper.\n" * 20], 300)
    CausalLM(llama_shape(32, 2, 2, 48, vocab=len(tokenizer), context=64), tokenizer).save_pretrained(folder / "tiny")
    messages = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day to you."}]
    (folder / "talks.jsonl").write_text("\n".join([json.dumps({"messages": messages})] * 12) + "\n", encoding="utf-8")
    run(TEXT / "finetune_lora.py", "--data", folder / "talks.jsonl", "--base", folder / "tiny", "--out",
        folder / "run", "rank=8", "context=64", "train.steps=60", "train.batch=2", "train.lr=2e-2", "train.eval_every=0", "train.save_every=0")
    return folder / "run"


def test_a_model_is_taught_to_talk_by_lora(talks):
    losses = [json.loads(line)["loss"] for line in (talks / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) / 5 < losses[0] - 0.3               # the frozen base knows nothing: what LoRA can do beside it is little
    for name in ("base/model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "model/chat_template.jinja",
                 "model/README.md", "samples/000060.txt"):
        assert (talks / name).is_file()


def test_a_conversation_is_held_in_the_terminal(talks, capsys):
    from textgen import Chat
    chat, hello = Chat.from_pretrained(talks / "model"), {"role": "user", "content": "Hello."}
    first = chat([hello], temperature=0)
    second = chat([hello, {"role": "assistant", "content": first}, {"role": "user", "content": "And you?"}], temperature=0)
    script = TEXT / "chat.py"
    printed = run(script, talks / "model", "--temperature", "0", typed="Hello.\n\nAnd you?\n/new\nHello.\n/quit\nnever read\n")
    assert printed == f"{first}\n{second}\n{first}\n"
    with pytest.raises(SystemExit) as refused:
        run(script, "novelist")
    assert refused.value.code == 2 and "has no chat template" in capsys.readouterr().err


def test_the_quickstart_takes_less_than_a_minute(demo):
    assert demo[2] < 60


def test_the_quickstart_prints_a_paragraph_and_captions(demo):
    _, printed, _ = demo
    paragraph = printed.split("2 of 4")[0].split("novelist\n")[1]
    assert len(paragraph.split()) > 60
    assert max(map(len, printed.splitlines())) < 140
    table = printed.split("read back\n")[1].split("\n\n")[0].splitlines()
    assert len(table) == 8 and all(re.search(r"\S {3,}\S", line) for line in table)


def test_the_quickstart_writes_pictures_sound_and_a_spectrogram(demo):
    folder, _, _ = demo
    for name in ("pictures.png", "spectrogram.png"):
        with Image.open(folder / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 100
    with wave.open(str(folder / "spoken.wav")) as sound:
        assert 1 < sound.getnframes() / sound.getframerate() < 20
        assert len(set(sound.readframes(sound.getnframes()))) > 100
    assert len(list((folder / "pictures").glob("*.png"))) == 8 and len(list((folder / "words").glob("*.wav"))) == 4


def test_what_the_quickstart_made_is_made_again_from_its_recipe(demo):
    folder, _, _ = demo
    for name in ("words/seven-george.wav", "pictures/a-handwritten-seven.png"):
        report = gencore.replay(folder / name)
        assert report


def test_the_spoken_words_give_their_clips_again_and_the_grid_knows_its_pictures(demo):
    folder, _, _ = demo
    clips = gencore.replay(folder / "spoken.wav")
    assert [clip.encoded() for clip in clips] == [(folder / "words" / f"{name}.wav").read_bytes()
                                                  for name in ("seven-george", "two-jackson", "nine-lucas", "four-theo")]
    known = gencore.recipe.read(folder / "pictures.png")
    assert [recipe.inputs["place"] for recipe in known] == list(range(8)) and len({recipe.inputs["prompt"] for recipe in known}) == 8


@pytest.mark.parametrize("script, given", [("tokenizer.py", ["--vocab", "300"]), ("word_vectors.py", ["width=8", "epochs=1", "min_count=1"])])
def test_a_folder_that_holds_anything_else_or_that_one_stands_in_is_not_written_anew(script, given, tmp_path, monkeypatch, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("the rain fell on the old town. a cat sat by the wall of the town.\n" * 60, encoding="utf-8")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("mine")
    monkeypatch.chdir(tmp_path / "own")
    again = ("--data", tmp_path / "texts", "--out", tmp_path / "out", *given)
    run(EXAMPLES / "text" / script, *again)
    run(EXAMPLES / "text" / script, *again)                                        # its own folder it may write again
    for out, words in ((".", "while the shell stands in it"), (tmp_path, "while the shell stands in it"), (tmp_path / "texts", "holds a.txt, which"),
                       (tmp_path / "texts" / "a.txt", "a.txt: File exists; choose another folder")):
        with pytest.raises(SystemExit):
            run(EXAMPLES / "text" / script, "--data", tmp_path / "texts", "--out", out, *given)
        assert words in capsys.readouterr().err
    assert (tmp_path / "own" / "README.md").read_text() == "mine" and len(list(tmp_path.iterdir())) == 3
