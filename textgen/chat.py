"""Chat: a causal language model that answers in a conversation, by the chat template of its tokenizer.

    chat = Chat.from_pretrained("runs/chat/model")
    reply = chat([{"role": "user", "content": "I need a taxi at nine."}])
    for piece in chat.stream(messages): print(piece, end="")"""
import warnings
from bisect import bisect_left
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from gencore.chat_template import at, now
from gencore.check import ConfigError, InputError, seeds_of, whole
from gencore.decode import resting
from gencore.recipe import Recipe, register
from gencore.run_folder import Run, open_run
from gencore.tokenizer import checked_messages, with_chat
from textgen.model import CausalLM
from textgen.run import Trace
from textgen.text import Row, logprobs_of, made_text, pieces

REPLAYED = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "compile", "quantize")


class Chat:
    """messages -> the assistant's reply.

    A conversation that outgrows the context loses its oldest turns whole (a user's message with what answered it); the system turn
    and the last message stay, and a warning says how many messages were left out."""

    def __init__(self, lm):
        if lm.tokenizer is None or lm.tokenizer.chat_template is None:
            raise InputError("this model's tokenizer has no chat template: use CausalLM.generate, or teach it conversations "
                             "(textgen.chat.chat_model)")
        self.lm = lm
        self.end = turn_end(lm.tokenizer)

    @classmethod
    def from_pretrained(cls, name_or_folder, *, dtype=torch.float32, device="cpu", compile=False, quantize=None):
        """As CausalLM.from_pretrained."""
        return cls(CausalLM.from_pretrained(name_or_folder, dtype=dtype, device=device, compile=compile, quantize=quantize))

    def __call__(self, messages, *, max_new_tokens=None, temperature=0.7, top_k=None, top_p=0.9, min_p=None, repetition_penalty=1.0, stop=(),
                 seed=None):
        """[{"role", "content"}, ...], the last a user's -> the reply, as Text (a str with its recipe). The settings are those of generate.

        max_new_tokens=None: 128, or a quarter of a shorter context."""
        settings = self._settings(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop)
        seed = seeds_of(seed, 1)[0]
        moment = now()
        with at(moment):
            ids, row, trace = self._prompt(messages, settings), self._row(settings), Trace()
        with resting(self.lm):
            reply = "".join(piece for _, piece in pieces(self.lm, [ids], [row], seeds=[seed], settings=settings, trace=trace))
        logprobs = logprobs_of(self.lm.tokenizer, row.said, trace.by_row(1)[0])
        return made_text(reply, self._recipe(messages, moment, seed, settings), logprobs, trace.tally)

    def stream(self, messages, *, max_new_tokens=None, temperature=0.7, top_k=None, top_p=0.9, min_p=None, repetition_penalty=1.0, stop=(),
               seed=None):
        """As calling it: yields the reply piece by piece."""
        settings = self._settings(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop)
        return self._resting_stream(self._prompt(messages, settings), seeds_of(seed, 1)[0], settings)

    def fitted(self, messages, room):
        """A conversation -> (ids of at most `room` tokens, how many of its messages were left out, the oldest turns first)."""
        system, turns = split_system(messages)
        starts = [0, *(i for i, message in enumerate(turns) if i and message["role"] == "user")]
        written = lambda start: self.lm.tokenizer.chat_ids([*system, *turns[start:]])
        ids = written(0)
        if len(ids) <= room:
            return ids, 0
        first = bisect_left(starts, True, lo=1, key=lambda start: len(written(start)) <= room)      # fewer messages are fewer tokens
        if first == len(starts):
            raise InputError(f"the last message has {len(written(starts[-1]))} tokens with what must stand before it, there is room for {room} "
                             f"beside the reply (the model reads {self.lm.cfg.context}): shorten it, or ask for fewer max_new_tokens")
        return written(starts[first]), starts[first]

    def _prompt(self, messages, settings):
        ids, left_out = self.fitted(messages, self.lm.cfg.context - settings.max_new_tokens)
        if left_out:
            warnings.warn(f"the conversation outgrew the model's {self.lm.cfg.context} tokens: its oldest {left_out} messages were left out",
                          stacklevel=3)
        return ids

    def _settings(self, max_new_tokens, *sampling_and_stop):
        if max_new_tokens is None:
            max_new_tokens = max(1, min(128, self.lm.cfg.context // 4))
        whole("max_new_tokens", max_new_tokens, 1, self.lm.cfg.context - 1)
        return self.lm._settings(max_new_tokens, *sampling_and_stop, None)

    def _row(self, settings):
        return Row(self.lm.tokenizer, settings.stop, (*self.lm.cfg.eos, self.end))

    def _resting_stream(self, ids, seed, settings):
        with resting(self.lm):
            for _, piece in pieces(self.lm, [ids], [self._row(settings)], seeds=[seed], settings=settings):
                yield piece

    def _recipe(self, messages, moment, seed, settings):
        if self.lm.digest is None:
            return None
        values = {name: getattr(settings, name) for name in REPLAYED} | self.lm.lowered()
        dated = {"now": moment.isoformat()} if "strftime_now" in self.lm.tokenizer.chat_template else {}
        return Recipe.made("chat", self.lm.name, self.lm.digest, inputs={"messages": messages, **dated}, seed=seed, settings=values)


def split_system(messages):
    """A conversation that can be answered -> (its system turn or none, the others), or InputError."""
    messages = checked_messages(messages)
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system):]
    if not any(message["role"] == "user" for message in turns):
        raise InputError('the conversation has no user turn: give [..., {"role": "user", "content": "..."}]')
    if turns[-1]["role"] != "user":
        raise InputError(f'the conversation should end with a user turn, which is to be answered, got "{turns[-1]["role"]}" last')
    if any(message["role"] == "system" for message in turns):
        raise InputError("only the first message can be the system's")
    return system, turns


def turn_end(tokenizer):
    """The special token that ends the assistant's words in this tokenizer's template."""
    asked = [{"role": "user", "content": "a"}]
    said = [*asked, {"role": "assistant", "content": "b"}]
    opened, closed = tokenizer.chat_ids(asked), tokenizer.chat_ids(said, prompt=False)
    special = set(tokenizer.control_tokens().values())
    end = next((i for i in closed[len(opened):] if i in special), None)
    if closed[:len(opened)] != opened or end is None:
        raise InputError("the chat template does not end the assistant's turn with a special token: such a template can't be used here")
    return end


def chat_model(lm, *, seed=0):
    """A CausalLM -> its copy for training that knows the default chat template; one that has a template keeps it.

    Each new token starts as the mean of all tokens, moved by as much noise as they differ (Hewitt 2021)."""
    lm = lm.trainable()
    if lm.tokenizer is None:
        raise InputError("this model has no tokenizer: CausalLM(cfg, tokenizer), or load a folder that has one")
    if lm.tokenizer.chat_template is not None:
        return lm
    tokenizer = with_chat(lm.tokenizer)
    rows, known = max(lm.cfg.vocab, len(tokenizer)), len(lm.tokenizer)
    eos = (*lm.cfg.eos, turn_end(tokenizer))
    wider = CausalLM(replace(lm.cfg, vocab=rows, eos=tuple(dict.fromkeys(eos))), tokenizer)
    generator = torch.Generator().manual_seed(seed)
    state = lm.state_dict()
    for name in ("embedding.weight", "head.weight"):
        old = state[name][:known]
        noise = torch.randn(rows - known, old.shape[1], generator=generator).to(old)
        state[name] = torch.cat((old, old.mean(0) + noise * old.std(0)))
    if lm.cfg.tied:
        state["head.weight"] = state["embedding.weight"]
    wider.load_state_dict(state)
    return wider


def base_of_run(folder, lm, *, seed=0, resume=False):
    """The model that a run in `folder` teaches, as folder/base has it: a new run writes `chat_model` of lm there, another's is not touched."""
    made, there = chat_model(lm, seed=seed), Path(folder) / "base"
    open_run(Run(folder, resume))
    if not there.is_dir():
        made.save_pretrained(there)
        return CausalLM.from_pretrained(there)
    kept = CausalLM.from_pretrained(there)
    theirs, ours = kept.state_dict(), made.state_dict()
    if kept.cfg != made.cfg or any(not torch.equal(tensor, ours[name]) for name, tensor in theirs.items()):
        raise ConfigError(f"{there} is another model, or made of another base: give the base and the seed that the run began with, or choose "
                          "another folder")
    return kept


def again(recipe):
    """The maker that gencore.replay calls."""
    settings = dict(recipe.settings)
    chat = Chat.from_pretrained(recipe.model, dtype=settings.pop("dtype", "float32"), compile=settings.pop("compile", False),
                                quantize=settings.pop("quantize", None))
    moment = recipe.inputs.get("now")
    try:
        moment = None if moment is None else datetime.fromisoformat(moment)
    except (ValueError, TypeError):
        raise InputError(f"recipe: now should be a time such as 2026-01-31T12:00:00, got {moment!r:.80}") from None
    with warnings.catch_warnings(), at(moment):
        warnings.simplefilter("ignore")
        return chat(recipe.inputs["messages"], seed=recipe.seed, **settings)


register("chat", again)
