"""imagegen/lora.py: an adapter that peft opens on diffusers' transformer, and the way back; only it is trained; another is refused; the example."""
import json

import pytest
import torch
from PIL import Image

import gencore
from gencore.check import CheckpointError, ConfigError, InputError
from gencore.train import Run, TrainConfig
from gencore.transformer import Memory
from imagegen import PainterLoRA, TextToImage
from imagegen.captioned import Captioned
from imagegen.lora import train_lora, with_own_drawings
from tests.scripts import EXAMPLES, run
from tests.tiny_folders import lively_painter, novelist, saved_painter
from textgen import LoRA

PROMPTS = ["a zibble", "slice of pizza, noto style"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny painter with random weights, saved and opened."""
    return TextToImage.from_pretrained(saved_painter(tmp_path_factory.mktemp("painters"), PROMPTS))


def moved(lora):
    """The adapter as if it had learnt something."""
    with torch.no_grad():
        for A, B in lora.adapter.matrices().values():
            A.normal_()
            B.normal_(std=0.1)
    return lora


def test_a_painter_with_an_adapter_in_it_takes_no_second(base, tmp_path):
    lora = PainterLoRA(base, rank=2)
    lora.save_pretrained(tmp_path)
    for again in (lambda: PainterLoRA(lora.painter, rank=2), lambda: PainterLoRA.from_pretrained(lora.painter, tmp_path)):
        with pytest.raises(InputError, match="this painter has an adapter in it: save the adapter by lora.save_pretrained, or take lora.merged"):
            again()


def draw(painter):
    return painter(PROMPTS, seed=3, steps=3, output_type="pt", progress=False)


@torch.no_grad()
def said(painter):
    """What the transformer says of drawn latents under drawn states."""
    latents, states, t = inputs()
    return painter.painter.transformer(latents, t, Memory(states))


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 5, 20, generator=generator), torch.tensor([40.0, 700.0])


@torch.no_grad()
def said_there(model):
    latents, states, t = inputs()
    return model(latents, states, timestep=t, added_cond_kwargs={"resolution": None, "aspect_ratio": None}).sample


def transformer_of(base):
    from diffusers import PixArtTransformer2DModel
    return PixArtTransformer2DModel.from_pretrained(base.name, subfolder="transformer")


@pytest.mark.parametrize("targets", [("qkv",), ("out", "q"), ("qkv", "out", "q", "kv", "up", "down")], ids=["qkv", "out-q", "all"])
def test_peft_opens_the_adapter_on_diffusers_transformer_with_the_same_outputs(base, targets, tmp_path):
    from peft import PeftModel
    lora = moved(PainterLoRA(base, rank=3, alpha=7, targets=targets))
    lora.save_pretrained(tmp_path / "adapter")
    assert (said(lora.painter) - said(base)).abs().max() > 0.01
    theirs = PeftModel.from_pretrained(transformer_of(base), tmp_path / "adapter")
    torch.testing.assert_close(said(lora.painter), said_there(theirs), rtol=1e-5, atol=1e-5)
    again = PainterLoRA.from_pretrained(base, tmp_path / "adapter")
    assert again.adapter.ranks == lora.adapter.ranks
    torch.testing.assert_close(draw(again.painter), draw(lora.painter), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(draw(lora.merged()), draw(lora.painter), rtol=1e-4, atol=1e-4)


def test_an_adapter_from_peft_comes_here_and_goes_back(base, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    theirs = get_peft_model(transformer_of(base), LoraConfig(
        r=2, lora_alpha=5, target_modules=["attn1.to_q", "attn2.to_v", "attn1.to_out.0", "ff.net.2"]))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    theirs.save_pretrained(tmp_path / "adapter")
    lora = PainterLoRA.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(said(lora.painter), said_there(theirs), rtol=1e-5, atol=1e-5)
    assert (said(lora.painter) - said(base)).abs().max() > 0.01
    lora.save_pretrained(tmp_path / "back")
    back = PeftModel.from_pretrained(transformer_of(base), tmp_path / "back")
    torch.testing.assert_close(said_there(back), said(lora.painter), rtol=1e-5, atol=1e-5)


def reds(count=4):
    """Red pictures and nothing else."""
    pixels = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
    pixels[:, 0] = 255
    return Captioned(pixels, lambda i, rng: "a zibble", torch.zeros(count).long(), torch.ones(count).numpy())


def test_only_the_adapter_is_trained_and_the_loss_falls(base, tmp_path):
    lora = PainterLoRA(base, rank=4)
    torch.testing.assert_close(draw(lora.painter), draw(base))                           # it starts as nothing
    before = {name: tensor.clone() for name, tensor in lora.painter.painter.state_dict().items()}
    data = with_own_drawings(base, reds(), PROMPTS[1:], share=0.25)
    config = TrainConfig(steps=60, batch=8, lr=2e-2, warmup=1, ema=0.5, save_every=0)
    train_lora(lora, data, config, run=Run(tmp_path / "run", export=lora.export, progress=False))
    changed = {name for name, tensor in lora.painter.painter.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".lora_" in name}
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    again = PainterLoRA.from_pretrained(base, tmp_path / "run" / "model")
    torch.testing.assert_close(draw(again.painter), draw(lora.painter), rtol=1e-5, atol=1e-5)


def test_own_drawings_come_with_their_prompts_as_often_as_asked(base):
    data = with_own_drawings(base, reds(), PROMPTS, share=0.25)
    assert data.pixels.shape == (6, 3, 16, 16) and data.weights.sum() == pytest.approx(1) and data.weights[4:].sum() == pytest.approx(0.25)
    assert [data.caption(i, None) for i in (0, 3, 4, 5)] == ["a zibble", "a zibble", *PROMPTS] and data.things.tolist() == [0, 0, 0, 0, 1, 2]


def test_merged_it_is_a_painter_whose_pictures_are_made_again(base, tmp_path):
    merged = moved(PainterLoRA(base)).merged()
    merged.save_pretrained(tmp_path / "mine")
    picture, = merged("a zibble", steps=2, seed=1, progress=False)
    picture.save(tmp_path / "a.png")
    assert gencore.replay(tmp_path / "a.png").tobytes() == picture.tobytes()
    assert "recipe" not in moved(PainterLoRA(base)).painter("a zibble", steps=1, seed=1, progress=False)[0].info      # no folder holds these weights


def test_an_adapter_for_another_base_is_refused(base, tmp_path):
    moved(PainterLoRA(base)).save_pretrained(tmp_path / "adapter")
    other = lively_painter(PROMPTS)
    torch.nn.init.ones_(other.painter.transformer.out.bias)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"an adapter for .*tiny \(weights \w{16}\), this model is .*other \(weights \w{16}\): load"):
        PainterLoRA.from_pretrained(TextToImage.from_pretrained(tmp_path / "other"), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r'another base: it changes "transformer_blocks\.0\.attn1\.to_k"'):
        (tmp_path / "adapter" / "base.json").unlink()
        LoRA.from_pretrained(novelist(), tmp_path / "adapter")


@pytest.mark.parametrize("call, words", [
    (lambda base: PainterLoRA(base, rank=0), "rank should be a whole number of at least 1, got 0"),
    (lambda base: PainterLoRA(base, targets=("to_q",)), "targets should be some of qkv, out, q, kv, up, down, got"),
    (lambda base: with_own_drawings(base, reds(), PROMPTS, share=2), "share should be between 0 and 1, got 2"),
    (lambda base: with_own_drawings(base, reds(), []), "prompts is empty")])
def test_wrong_input_is_named(base, call, words):
    with pytest.raises(InputError, match=words):
        call(base)


def test_the_example_teaches_and_reports(base, tmp_path):
    given = [EXAMPLES / "image" / "lora.py", "--base", base.name, "--out", tmp_path / "run", "rank=2", "train.batch=4", "train.warmup=1",
             "train.save_every=0"]
    said = run(*given, "train.steps=3")
    run(*given, "train.steps=4", "--resume")
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert "from its nearest picture" in said and "other prompts, before and after" in said
    assert Image.open(tmp_path / "run" / "sheet.png").width == Image.open(tmp_path / "run" / "samples" / "000004.png").width == 8 * 18 - 2
    assert TextToImage.from_pretrained(tmp_path / "run" / "painter").digest and (tmp_path / "run" / "model" / "adapter_config.json").is_file()


def test_a_painter_with_an_adapter_in_it_is_saved_merged(base, tmp_path):
    lora = moved(PainterLoRA(base, rank=2))
    with pytest.raises(InputError, match="has an adapter in it: save the adapter by lora.save_pretrained, or take lora.merged"):
        lora.painter.save_pretrained(tmp_path / "p")
    assert not (tmp_path / "p").exists()
    lora.merged().save_pretrained(tmp_path / "p")
    torch.testing.assert_close(draw(TextToImage.from_pretrained(tmp_path / "p")), draw(lora.painter), rtol=0, atol=1e-4)


@pytest.mark.parametrize("said", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"target_parameters": ["w"]},
                                  {"layer_replication": [[0, 1]]}])
def test_adapters_that_change_more_than_they_hold_are_refused(base, said, tmp_path):
    moved(PainterLoRA(base, rank=2)).save_pretrained(tmp_path / "a")
    place = tmp_path / "a" / "adapter_config.json"
    config = json.loads(place.read_text())
    (tmp_path / "a" / "digests.json").unlink()
    place.write_text(json.dumps(config | {"init_lora_weights": "gaussian", "target_parameters": None}))
    PainterLoRA.from_pretrained(base, tmp_path / "a")
    place.write_text(json.dumps(config | said))
    with pytest.raises(ConfigError, match=f"LoRA model: {next(iter(said))} should be"):
        PainterLoRA.from_pretrained(base, tmp_path / "a")
