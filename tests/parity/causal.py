"""What every family of causal models is held to: transformers' random weights come here and go back, greedy tokens agree through both caches."""
import torch

from textgen import CausalLM
from textgen.run import run
from textgen.text import Settings


def random_model(model_class, config):
    """A model of transformers with random weights, norms and biases too, larger than they start."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def check_round_trip(theirs, folder):
    """Logits at 1e-5 here, and weights to the bit after the way back, on which no tensor is missing or left over."""
    from transformers import AutoModelForCausalLM
    theirs.save_pretrained(folder / "theirs")
    ours = CausalLM.from_pretrained(folder / "theirs")
    ids = torch.randint(0, theirs.config.vocab_size, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)

    ours.save_pretrained(folder / "ours")
    back, report = AutoModelForCausalLM.from_pretrained(folder / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert back.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), theirs.state_dict().values()))
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, theirs(ids).logits, atol=0, rtol=0)
    assert CausalLM.from_pretrained(folder / "ours").cfg == ours.cfg


def check_greedy_tokens(theirs, folder):
    """Thirty tokens after a prompt of seven."""
    theirs.save_pretrained(folder)
    ours = CausalLM.from_pretrained(folder)
    ids = torch.randint(2, theirs.config.vocab_size, (1, 7))
    wanted = theirs.generate(ids, max_new_tokens=30, do_sample=False)[0, 7:].tolist()
    settings = Settings(max_new_tokens=30, temperature=0)
    assert [tokens[0] for tokens in run(ours, ids.tolist(), settings.sampling, seeds=[0], settings=settings)] == wanted
