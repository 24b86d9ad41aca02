"""Generated words: Text (a str that knows how it was made), streaming without broken characters, and stop strings."""
from dataclasses import dataclass, field

import torch

from gencore.check import InputError, in_range, whole
from gencore.choose import Sampling
from gencore.data import right_padded
from gencore.recipe import Recipe, save_text
from textgen.run import check_draft, chosen_logprobs, run


@dataclass(frozen=True)
class Logprobs:
    """Natural log-probabilities of tokens, as the model has them: before temperature and all else that narrows a choice."""
    ids: list[int]
    tokens: list[str]                                # each decoded by itself: a part of a character is U+FFFD
    values: list[float]

    @property
    def total(self):
        return sum(self.values)


class Text(str):
    """What `generate` returns: the prompt and what follows it, how likely its tokens were, and the recipe that makes it again."""
    recipe: Recipe | None = None
    logprobs: Logprobs | None = None                 # of the new tokens, the end included; beam search keeps none
    acceptance: float | None = None                  # share of a draft's guesses that stood

    def save(self, path):
        """Writes the text, and its recipe beside it: gencore.replay(path) makes it again."""
        if self.recipe is None:
            raise InputError("this text has no recipe: the model was not loaded from a folder")
        save_text(path, str(self), self.recipe)


def made_text(text, recipe, logprobs, tally):
    made = Text(text)
    made.recipe, made.logprobs = recipe, logprobs
    made.acceptance = tally.accepted / tally.proposed if tally.proposed else None
    return made


def logprobs_of(tokenizer, ids, values):
    """ids and at least as many log-probabilities, or None -> Logprobs, or None."""
    return None if values is None else Logprobs(ids, [tokenizer.decode([token], keep_special=True) for token in ids], values[:len(ids)])


@dataclass
class Row:
    """One text on its way: ids in, whole characters out, until an end."""
    tokenizer: object
    stops: tuple[str, ...]
    eos: tuple[int, ...]
    context: list = field(default_factory=list)      # ids already said: joined pieces decode as the whole does
    said: list = field(default_factory=list)         # new ids, the end included
    pending: list = field(default_factory=list)      # ids whose text is not complete
    shown: int = 0                                   # characters of it that are, and were given
    waiting: int = 0                                 # ids since one of them was
    held: str = ""                                   # text that may be the beginning of a stop string
    over: bool = False

    def add(self, token):
        """One id -> the text that is now certain."""
        if self.over:
            return ""
        self.said.append(token)
        if token in self.eos:
            return self.end()
        self.pending.append(token)
        text = self._undecoded()
        piece = text.rstrip("\ufffd")[self.shown:]                   # a character of several bytes may have more to come
        self.waiting = 0 if piece else self.waiting + 1
        if text.endswith("\ufffd") and self.waiting < 8:
            self.shown += len(piece)
        else:
            piece, self.shown, self.waiting = text[self.shown:], 0, 0
            self.context, self.pending = tail(self.tokenizer, self.context + self.pending), []
        return self._released(self.held + piece)

    def _undecoded(self):
        """Text of the pending ids, as it stands behind those before."""
        return self.tokenizer.decode(self.context + self.pending)[len(self.tokenizer.decode(self.context)):]

    def end(self):
        """The rest, when the row ends."""
        if self.over:
            return ""
        rest = self._released(self.held + self._undecoded()[self.shown:]) + self.held
        self.held, self.over = "", True
        return rest

    def _released(self, text):
        """Cuts at a stop string; holds back what may become one."""
        found = [text.find(stop) for stop in self.stops if stop in text]
        if found:
            self.held, self.over = "", True
            return text[:min(found)]
        most = max(map(len, self.stops), default=0)
        keep = next((n for n in range(min(most - 1, len(text)), 0, -1)
                     if any(stop.startswith(text[-n:]) for stop in self.stops)), 0) if most > 1 else 0
        self.held = text[len(text) - keep:] if keep else ""
        return text[:len(text) - keep]


def tail(tokenizer, ids, least=8):
    """The last ids, from the beginning of a character on: where characters are spelt in bytes (SentencePiece), half a one spoils those behind it."""
    ends = (ids[-n:] for n in range(least, least + 4))
    return next((end for end in ends if not tokenizer.decode(end).startswith("\ufffd")), ids[-least:])


@dataclass(frozen=True)
class Settings:
    """What shapes a text beside model, prompt and seed: the settings of its recipe."""
    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = 0.95
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()                       # the text ends before the first of these
    window: int | None = None                        # tokens that are looked back at; None = the model's context
    constraint: str | dict | None = None             # a regular expression or a JSON schema that the new text matches
    draft: object = None                             # a small CausalLM that guesses ahead
    beams: int = 1                                   # more: the likeliest text that a beam search finds
    length_penalty: float = 1.0                      # of a beam search: above 0 longer texts are favoured
    compile: bool = False                            # compiled steps round differently
    quantize: str | None = None                      # so do int8 and int4 weights

    def __post_init__(self):
        stop = (self.stop,) if isinstance(self.stop, str) else () if self.stop is None else self.stop
        if not isinstance(stop, (list, tuple)) or not all(isinstance(text, str) and text for text in stop):
            raise InputError(f"stop should be a text or a list of texts, got {self.stop!r:.80}")
        object.__setattr__(self, "stop", tuple(stop))
        Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)              # checks these
        for name, low, high in (("max_new_tokens", 0, None), ("beams", 1, 256), ("window", 1, None)):
            if name != "window" or self.window is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), low, high))
        in_range("length_penalty", self.length_penalty, -20, 20)
        if self.beams > 1 and (self.repetition_penalty != 1.0 or self.constraint is not None):
            raise InputError("a beam search looks for the likeliest text of all: leave out repetition_penalty and constraint, or beams")
        if not isinstance(self.constraint, (str, dict, type(None))):
            raise InputError(f"constraint should be a regular expression (str) or a JSON schema (dict), got {type(self.constraint).__name__}")

    @property
    def sampling(self):
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


def as_list(prompt):
    """A text or several -> a list of them, or InputError."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, (list, tuple)) else []
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise InputError(f"expected a text as str, or a list of them, got {prompt!r:.80}")
    return prompts


def beginning(cfg, why):
    """The id that begins a text, or InputError."""
    found = next((i for i in (cfg.bos, *cfg.eos, cfg.pad) if i is not None), None)
    if found is None:
        raise InputError(f"{why} and the model has no token that begins a text: give some text")
    return found


def checked_prompts(lm, prompts, settings):
    """Texts -> lists of ids; an empty prompt starts at the model's own beginning of text."""
    if settings.window is not None and settings.window > lm.cfg.context:
        raise InputError(f"window should be between 1 and the model's {lm.cfg.context} tokens, got {settings.window!r}")
    lists = []
    for prompt in prompts:
        ids = lm.tokenizer.encode(prompt, special=True)
        lists.append(ids or [beginning(lm.cfg, "the prompt is empty")])
    longest = max(map(len, lists))
    if longest > lm.cfg.context and (settings.window is None or lm.cfg.learned_positions):
        advice = "shorten it" if lm.cfg.learned_positions else f"shorten it or use window={lm.cfg.context}"
        raise InputError(f"the prompt has {longest} tokens, the model reads {lm.cfg.context}: {advice}")
    if lm.cfg.learned_positions and longest + settings.max_new_tokens > lm.cfg.context:
        raise InputError(f"prompt and max_new_tokens are {longest} + {settings.max_new_tokens} tokens, the model has {lm.cfg.context} positions: "
                         f"ask for at most {lm.cfg.context - longest}")
    return lists


def started(lm, prompts, settings):
    """Prompts -> (lists of their ids, a Row for each)."""
    lists = checked_prompts(lm, prompts, settings)
    if settings.draft is not None:
        check_draft(lm, lists, settings)
    return lists, [Row(lm.tokenizer, settings.stop, lm.cfg.eos, context=tail(lm.tokenizer, ids)) for ids in lists]


def pieces(lm, lists, rows, *, seeds, settings, trace=None):
    """What `started` gave -> yields (row, piece of its text) as they become certain; ends when every row has ended."""
    for tokens in run(lm, lists, settings.sampling, seeds=seeds, settings=settings, trace=trace) if settings.max_new_tokens else ():
        for number, (row, token) in enumerate(zip(rows, tokens)):
            if (piece := row.add(token)):
                yield number, piece
        if all(row.over for row in rows):
            return
    for number, row in enumerate(rows):
        if (piece := row.end()):
            yield number, piece


@torch.inference_mode()
def score(lm, texts, *, batch=8):
    """Texts -> yields (ids, log-probability of each), in batches."""
    begin = beginning(lm.cfg, "the first token follows nothing")
    lists = [lm.tokenizer.encode(text) for text in texts]
    longest = max(map(len, lists))
    if longest > lm.cfg.context:
        raise InputError(f"the text has {longest} tokens, the model reads {lm.cfg.context}: score it in parts")
    for start in range(0, len(lists), batch):
        part = lists[start:start + batch]
        ids, _ = right_padded([[begin, *row] for row in part], begin)                     # causal: filling changes nothing before it
        ids = ids.to(lm.embedding.weight.device)
        yield from zip(part, chosen_logprobs(lm(ids[:, :-1]), ids[:, 1:]).tolist() if ids.shape[1] > 1 else part)


def joined(prompts, parts):
    """The whole texts from what `pieces` yields."""
    texts = [[prompt] for prompt in prompts]
    for row, piece in parts:
        texts[row].append(piece)
    return ["".join(text) for text in texts]
