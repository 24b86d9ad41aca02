"""examples/train_*.py on tiny data: each leaves a whole run folder, goes on for longer with --resume, and runs in two processes."""

import json
import os
import re
import subprocess
import sys

import pytest
from PIL import Image

from audiogen import TextToSpeech
from gencore.config import override
from imagegen import TextToImage
from multimodal import Captioner
from multimodal.splice import SpliceConfig, Spliced
from tests.scripts import EXAMPLES, ROOT, run
from textgen import CausalLM

PARTS = {"text": {"": "train"}, "image": {"autoencoder": "autoencoding", "prompts": "prompts", "painter": "painting"},
         "audio": {"codec": "spectra", "finish": "finish", "speaker": "speaker"}, "reader": {"": "training"}}      # folder: its settings
TINY = {
    "text": ["vocab=300", "context=16", "width=16", "layers=1", "heads=2", "mlp=32", "prompt=The rain", "train.batch=4"],
    "image": ["size=32", "channels=[4,4,4]", "latent=2", "transformer.width=16", "transformer.layers=1", "transformer.heads=2", "words.width=16",
              "words.layers=1", "words.head_width=4", "words.mlp=16", "autoencoding.batch=4", "prompts.batch=4", "painting.batch=4", "shown=2"],
    "audio": ["codec.width=16", "codec.encoder_blocks=1", "codec.decoder_blocks=1", "codec.quantize.warmup=1", "codec.quantize.codes=16",
              "spectra.batch=4", "finish.batch=4", "speaker.batch=4", "versions=1", "longest=60", "window=2048", "transformer.layers=1",
              "transformer.width=32", "transformer.attention.heads=2"],
    "reader": ["vision.width=16", "vision.heads=2", "vision.layers=1", "vision.mlp=16", "width=16", "heads=2", "layers=1", "mlp=16", "vocab=300",
               "training.batch=4"]}
LAST = {kind: list(parts)[-1] for kind, parts in PARTS.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Kind -> what --data says: a text, captioned pictures; sound is made by its example."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "rain.txt").write_text("The rain fell upon the roof of the old house, where nobody had lived for years.\n" * 40, encoding="utf-8")
    (folder / "pictures").mkdir()
    names = ["red", "blue", "green"] * 8
    for number, name in enumerate(names):
        Image.new("RGB", (64, 64), name).save(folder / "pictures" / f"{number}.png")
    rows = [json.dumps({"file_name": f"{number}.png", "text": f"a {name} square"}) for number, name in enumerate(names)]
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    pictures = ["--data", folder / "pictures"]
    return {"text": ["--data", folder / "rain.txt"], "image": pictures, "audio": [], "reader": pictures}


def settings(kind, steps):
    """What a run of so many steps in its last part takes: three in those before."""
    given = [f"{part}.{name}={value}" for part in PARTS[kind].values()
             for name, value in (("steps", 3), ("warmup", 1), ("eval_every", 2), ("save_every", 2))]
    return [*TINY[kind], *given, f"{PARTS[kind][LAST[kind]]}.steps={steps}"]


def test_the_settings_that_the_readers_example_names_make_a_model():
    import importlib
    example = importlib.import_module("examples.train_reader")
    named = re.search(r"train_reader.py (training\S+ \S+)  ", example.__doc__)[1].split()
    config = override(example.LearnConfig(), [*example.SMALL, *named])
    assert Spliced(SpliceConfig(config.vision, width=config.width, layers=config.layers, heads=config.heads, mlp=config.mlp))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def use(kind, model):
    """The trained model, opened and used once."""
    if kind == "text":
        return CausalLM.from_pretrained(model).generate("The rain", max_new_tokens=4, seed=0).startswith("The rain")
    if kind == "image":
        return TextToImage.from_pretrained(model)("a red square", steps=2, seed=0)[0].size == (32, 32)
    if kind == "audio":
        speaker = TextToSpeech.from_pretrained(model)
        assert speaker.voices == ["flute", "organ", "reed"] and speaker.words == ["falling", "high", "low", "rising"]
        return 128 <= speaker("rising", "reed", seed=0).waveform.shape[1] <= 60 * 128
    return isinstance(Captioner.from_pretrained(model)(Image.new("RGB", (64, 64), "red")), str)


@pytest.mark.parametrize("kind", PARTS)
def test_an_example_leaves_a_whole_run_folder_and_goes_on_for_longer(kind, data, tmp_path):
    script, out = EXAMPLES / f"train_{kind}.py", tmp_path / "run"
    run(script, *data[kind], "--out", out, *settings(kind, 3))
    begun = {part: metrics(out / part) for part in PARTS[kind]}
    before = {path: path.read_bytes() for path in (out / LAST[kind] / "model").rglob("*.safetensors")}
    run(script, *data[kind], "--out", out, "--resume", *settings(kind, 5))
    for part in PARTS[kind]:
        rows, folder = metrics(out / part), out / part
        assert rows[:3] == begun[part] and [row["step"] for row in rows] == list(range(1, 6 if part == LAST[kind] else 4))
        assert (folder / "loss.png").stat().st_size > 1000 and "## Figures" in (folder / "README.md").read_text()
        assert [path.name for path in sorted(folder.glob("checkpoints/*"))] == [f"step-{step:06d}" for step in ((4, 5) if len(rows) == 5 else (2, 3))]
    for step in (2, 3, 4, 5):
        assert list((out / LAST[kind] / "samples").glob(f"{step:06d}*"))
    assert kind != "image" or (out / "autoencoder" / "samples" / "000002.png").is_file()
    assert before and any(path.read_bytes() != content for path, content in before.items())
    assert use(kind, out / LAST[kind] / "model")


def test_a_text_model_goes_on_from_another(data, tmp_path):
    command = [EXAMPLES / "train_text.py", *data["text"], "--out", tmp_path / "first", *settings("text", 60), "train.lr=3e-2",
               "train.eval_every=0", "train.save_every=0"]
    run(*command)
    further = [EXAMPLES / "train_text.py", "prompt=The rain", *data["text"], "--base", tmp_path / "first" / "model", "train.steps=2",
               "train.batch=4", "train.warmup=1", "--out", tmp_path / "second"]                       # settings stand anywhere
    run(*further, "context=16")
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in ("first", "second")]
    assert losses[1][0] < losses[0][0] - 1 and use("text", tmp_path / "second" / "model")
    run(*further[:-1], tmp_path / "wider", "context=40")
    wider = CausalLM.from_pretrained(tmp_path / "wider" / "model")
    assert wider.cfg.context == wider.tokenizer.config["model_max_length"] == 40


def test_torchrun_leaves_the_options_of_every_training_script_alone(help_of):
    """Its parser reads what stands behind the script as well, and refuses what could be short for two options of its own."""
    from torch.distributed.run import get_args_parser
    for kind in PARTS:
        options = set(re.findall(r"--[a-z-]+", help_of(f"examples/train_{kind}.py"))) - {"--start"}           # the older name of --base
        assert {"--data", "--out", "--resume"} <= options
        for option in options:
            assert get_args_parser().parse_args(["train.py", option, "x"]).training_script_args == [option, "x"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", PARTS)
def test_an_example_runs_in_two_processes_under_torchrun(kind, data, tmp_path):
    given = [] if kind == "reader" else data[kind]                                    # the reader's scenes are drawn by one process of the two
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", EXAMPLES / f"train_{kind}.py", *given,
               "--out", tmp_path / "run", *settings(kind, 3)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["step"] for row in metrics(tmp_path / "run" / LAST[kind])] == [1, 2, 3]
    assert use(kind, tmp_path / "run" / LAST[kind] / "model")
