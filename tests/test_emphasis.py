"""imagegen/emphasis.py: a network learns to say at once what it would say led away from the rest of a prompt, and all else as before."""
import copy

import numpy as np
import pytest
import torch

from gencore.diffusion import FLOW
from gencore.text_encoder import TextEncoder, TextEncoderConfig, encode_prompts, train_prompt_tokenizer
from gencore.train import Run, TrainConfig
from gencore.transformer import Memory
from imagegen import train_painter
from imagegen.autoencoder import Autoencoder, AutoencoderConfig
from imagegen.captioned import Captioned
from imagegen.dit import DiT, DiTConfig
from imagegen.emphasis import Emphasis, Lead, emphasis_loss, train_emphasis
from imagegen.text_to_image import Painter

CAPTIONS = ["red circle, noto style", "blue circle, openmoji style", "red circle", "a handwritten three"]


@pytest.fixture
def tokenizer():
    return train_prompt_tokenizer(CAPTIONS * 4, 300, length=12)


@pytest.fixture
def painter():
    torch.manual_seed(0)
    words = TextEncoder(TextEncoderConfig(vocab=300, width=20, heads=2, head_width=8, mlp=30))
    autoencoder = Autoencoder(AutoencoderConfig(channels=(4, 4, 8, 8), groups=2))
    painter = Painter(DiT(DiTConfig(patch=1, width=24, layers=2, heads=2, captions=20)), words, autoencoder)
    for weight in painter.transformer.parameters():                        # an untrained one says nothing, whatever it is asked
        torch.nn.init.normal_(weight, std=0.2) if weight.dim() > 1 else None
    return painter.eval()


def memory(painter, tokenizer, texts):
    ids, keep, _ = encode_prompts(tokenizer, texts, 12)
    with torch.no_grad():
        return Memory(painter.text_encoder(ids, keep), keep)


def latents(count, seed=0):
    return torch.randn(count, 16, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_what_is_learnt_lies_beyond_the_prompt_as_far_as_the_strength_says(painter, tokenizer):
    rests = [train_painter.without_design(text) for text in CAPTIONS]
    assert rests == ["red circle", "blue circle", "red circle", "a handwritten three"]
    prompt, rest = memory(painter, tokenizer, CAPTIONS), memory(painter, tokenizer, rests)
    x, times, has_other = latents(4), torch.tensor([900.0, 500, 300, 100]), torch.tensor([True, True, False, False])
    with torch.no_grad():
        said, without = painter.transformer(x, times, prompt), painter.transformer(x, times, rest)
        led = Emphasis(painter, 0.5).led(x, times, (prompt, rest), has_other)
    assert not torch.allclose(said[:2], without[:2], atol=1e-3)
    torch.testing.assert_close(led, torch.where(has_other[:, None, None, None], said + 0.5 * (said - without), said), rtol=0, atol=1e-5)


def test_above_the_level_that_is_named_nothing_is_led(painter, tokenizer):
    others = [train_painter.in_rival_design(text) for text in CAPTIONS]
    assert others == ["red circle, twemoji style", "blue circle, noto style", "red circle", "a handwritten three"]
    assert train_painter.in_rival_design("chef: dark skin tone, noto style") == "chef: dark skin tone, noto style"
    prompts, has_other = [memory(painter, tokenizer, texts) for texts in (CAPTIONS, others)], torch.tensor([True, True, False, False])
    x, times = latents(4), torch.tensor([650.0, 550, 300, 100])
    with torch.no_grad():
        led, low = Emphasis(painter, 0.5).led(x, times, prompts, has_other), Emphasis(painter, 0.5, below=0.6).led(x, times, prompts, has_other)
        said = painter.transformer(x, times, prompts[0])
    torch.testing.assert_close(low, torch.where(torch.tensor([False, True, False, False])[:, None, None, None], led, said), rtol=0, atol=1e-5)
    assert not torch.allclose(led[:2], said[:2], atol=1e-3)


@pytest.mark.parametrize("has_other", [[False, False], [True, True]])
def test_a_batch_may_have_no_designs_or_nothing_else(painter, tokenizer, has_other):
    prompt = memory(painter, tokenizer, CAPTIONS[:2])
    led = Emphasis(painter, 0.5).led(latents(2), torch.tensor([900.0, 500]), (prompt, prompt), torch.tensor(has_other))
    torch.testing.assert_close(led, painter.transformer(latents(2), torch.tensor([900.0, 500]), prompt), rtol=0, atol=1e-5)


def test_it_learns_what_it_was_led_to_and_leaves_the_rest(painter, tokenizer, tmp_path):
    before = copy.deepcopy(painter)
    data = Captioned(torch.zeros(4, 3, 64, 64, dtype=torch.uint8), lambda i, rng: CAPTIONS[i], torch.arange(4), np.ones(4))
    config = TrainConfig(steps=150, batch=16, lr=3e-3, warmup=5, decay=0.7, weight_decay=0.0, ema=None, precision="float32")
    after = train_emphasis(painter, tokenizer, data, Lead(train_painter.without_design, 1.0), config=config, run=Run(tmp_path / "run"))
    assert all(torch.equal(a, b) for part in ("text_encoder", "autoencoder")
               for a, b in zip(getattr(before, part).state_dict().values(), getattr(after, part).state_dict().values(), strict=True))
    clean = before.autoencoder.encode(torch.full((1, 3, 64, 64), -1.0))[0].expand(16, -1, -1, -1)
    levels = torch.linspace(0.1, 0.9, 16)
    x, texts = FLOW.mix(clean, latents(16, seed=9), levels), CAPTIONS * 4
    prompt = memory(before, tokenizer, texts)
    rest = memory(before, tokenizer, [train_painter.without_design(text) for text in texts])
    has_other = torch.tensor([True, True, False, False] * 4)
    with torch.no_grad():
        wanted = Emphasis(copy.deepcopy(before), 1.0).led(x, levels * 1000, (prompt, rest), has_other)
        was, now = ((p.transformer(x, levels * 1000, prompt) - wanted).square().flatten(1).mean(1) for p in (before, after))
    assert now[has_other].mean() < 0.5 * was[has_other].mean()               # half the way and more
    assert now[~has_other].mean() < 0.5 * was[has_other].mean()              # the others have not been moved as far as that


def test_only_the_transformer_has_gradients(painter, tokenizer):
    ids, keep, _ = encode_prompts(tokenizer, CAPTIONS, 12)
    batch = {"latents": latents(4), "ids": ids, "keep": keep, "other_ids": ids, "other_keep": keep, "has_other": torch.tensor([True] * 4)}
    model = Emphasis(painter, 0.5)
    loss, count = emphasis_loss(model, batch, torch.Generator().manual_seed(0))
    assert count == 4 and loss.item() == pytest.approx(0, abs=1e-6)        # a prompt that is its own rest: nothing is to be learnt
    with torch.no_grad():
        painter.transformer.out.bias += 1.0
    emphasis_loss(model, batch, torch.Generator().manual_seed(0))[0].backward()
    assert {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None} == {"painter"}
    assert all(weight.grad is None for part in (painter.text_encoder, painter.autoencoder) for weight in part.parameters())
