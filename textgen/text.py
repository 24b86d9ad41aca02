"""Generated words: Text (a str that knows how it was made), streaming without broken characters, stop strings, and the run of a batch."""
from dataclasses import dataclass, field

import torch

from gencore.check import InputError
from gencore.decode import Stepper, decode, left_padded, make_cache, picker
from gencore.recipe import Recipe, save_text

SEEDS = 2 ** 63


class Text(str):
    """What `generate` returns: the prompt and what follows it, and the recipe that makes it again."""
    recipe: Recipe | None = None

    def save(self, path):
        """Writes the text, and its recipe beside it: gencore.replay(path) makes it again."""
        if self.recipe is None:
            raise InputError("this text has no recipe: the model was not loaded from a folder")
        save_text(path, str(self), self.recipe)


def made_text(text, recipe):
    made = Text(text)
    made.recipe = recipe
    return made


@dataclass
class Row:
    """One text on its way: ids in, whole characters out, until an end."""
    tokenizer: object
    stops: tuple[str, ...]
    eos: tuple[int, ...]
    context: list = field(default_factory=list)      # ids already said: joined pieces decode as the whole does
    pending: list = field(default_factory=list)      # ids whose text is not complete
    held: str = ""                                   # text that may be the beginning of a stop string
    over: bool = False

    def add(self, token):
        """One id -> the text that is now certain."""
        if self.over:
            return ""
        if token in self.eos:
            return self.end()
        self.pending.append(token)
        before = self.tokenizer.decode(self.context)
        piece = self.tokenizer.decode(self.context + self.pending)[len(before):]
        if piece.endswith("\ufffd") and len(self.pending) < 8:       # a character of several bytes has more to come
            return ""
        self.context, self.pending = self.pending[-8:], []
        return self._released(self.held + piece)

    def end(self):
        """The rest, when the row ends."""
        if self.over:
            return ""
        before = self.tokenizer.decode(self.context)
        rest = self.held + self.tokenizer.decode(self.context + self.pending)[len(before):]
        rest = self._released(rest) + self.held
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
    compile: bool = False                            # compiled steps round differently
    quantize: str | None = None                      # so do int8 weights


def as_list(prompt):
    """A prompt or several -> a list of them, or InputError."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, (list, tuple)) else []
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise InputError(f"expected a prompt as str, or a list of them, got {prompt!r:.80}")
    return prompts


def checked_prompts(lm, prompts, settings):
    """Texts -> lists of ids; an empty prompt starts at the model's own beginning of text."""
    if not isinstance(settings.max_new_tokens, int) or settings.max_new_tokens < 0:
        raise InputError(f"max_new_tokens should be a whole number of at least 0, got {settings.max_new_tokens!r}")
    if settings.window is not None and not 1 <= settings.window <= lm.cfg.context:
        raise InputError(f"window should be between 1 and the model's {lm.cfg.context} tokens, got {settings.window!r}")
    lists = []
    for prompt in prompts:
        ids = lm.tokenizer.encode(prompt, special=True)
        if not ids:
            start = next((i for i in (lm.cfg.bos, *lm.cfg.eos, lm.cfg.pad) if i is not None), None)
            if start is None:
                raise InputError("the prompt is empty and the model has no token that begins a text: give some text")
            ids = [start]
        lists.append(ids)
    longest = max(map(len, lists))
    if longest > lm.cfg.context and (settings.window is None or lm.cfg.learned_positions):
        advice = "shorten it" if lm.cfg.learned_positions else f"shorten it or use window={lm.cfg.context}"
        raise InputError(f"the prompt has {longest} tokens, the model reads {lm.cfg.context}: {advice}")
    if lm.cfg.learned_positions and longest + settings.max_new_tokens > lm.cfg.context:
        raise InputError(f"prompt and max_new_tokens are {longest} + {settings.max_new_tokens} tokens, the model has {lm.cfg.context} positions: "
                         f"ask for at most {lm.cfg.context - longest}")
    return lists


@torch.inference_mode()
def run(lm, lists, sampling, *, seeds, settings):
    """Lists of prompt ids -> yields, a step each, the list of new ids (one a row)."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    limit = settings.max_new_tokens
    ids, keep = left_padded(lists, lm.cfg.pad if lm.cfg.pad is not None else 0, extra=limit)
    weight = lm.embedding.weight
    stepper, chunk = lm.fast_stepper(ids.shape[1] + limit) if settings.compile and len(lists) == 1 and settings.window is None else None, None
    if stepper is None:
        context = min(settings.window or lm.cfg.context, lm.cfg.context)
        cache, within = make_cache(lm.cfg.transformer, len(lists), ids.shape[1] + limit, context=context, like=weight)
        stepper = Stepper(lm.last_logits, cache, keep=keep.to(weight.device), within=within)
        chunk = within
    seen = ids.masked_fill(~keep[:, :ids.shape[1]], -1)
    pick = picker(sampling, generators, seen=seen.to(weight.device))
    first = stepper.prefill(ids.to(weight.device), chunk=chunk)
    for tokens in decode(first, stepper.step, pick, limit=limit):
        yield tokens.tolist()


def pieces(lm, prompts, sampling, *, seeds, settings):
    """Prompts -> yields (row, piece of its text) as they become certain; ends when every row has ended."""
    lists = checked_prompts(lm, prompts, settings)
    rows = [Row(lm.tokenizer, settings.stop, lm.cfg.eos, context=ids[-8:]) for ids in lists]
    for tokens in run(lm, lists, sampling, seeds=seeds, settings=settings) if settings.max_new_tokens else ():
        for number, (row, token) in enumerate(zip(rows, tokens)):
            if (piece := row.add(token)):
                yield number, piece
        if all(row.over for row in rows):
            return
    for number, row in enumerate(rows):
        if (piece := row.end()):
            yield number, piece


def joined(prompts, parts):
    """The whole texts from what `pieces` yields."""
    texts = [[prompt] for prompt in prompts]
    for row, piece in parts:
        texts[row].append(piece)
    return ["".join(text) for text in texts]
