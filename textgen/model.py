"""CausalLM: token embedding, gencore.Transformer, head (Radford et al. 2019; Touvron et al. 2023)."""
import warnings
from dataclasses import dataclass, field, fields, replace

import torch
import torch.nn.functional as F
from torch import nn

from gencore.attention import head_sizes
from gencore.check import InputError, dims, floating, nearest, present, seeds_of, whole
from gencore.checkpoint import naming, read_json, resolve, save_folder, tensor_shapes
from gencore.config import Positive, Size, check_fields, check_ids, check_values
from gencore.decode import CompiledStep, column_major, resting
from gencore.embeddings import LearnedPositions, rows_of
from gencore.families import BY_NAME, read_config
from gencore.int4 import int4_linears
from gencore.int8 import int8_linears
from gencore.layers import NormConfig
from gencore.loss import IGNORED, capped, check_targets, chunked_cross_entropy
from gencore.masks import causal
from gencore.masks import documents as of_documents
from gencore.positions import restarting
from gencore.recipe import Recipe, ReplayError, lasting_name, made_with, register, survives
from gencore.step_linear import step_linears
from gencore.tokenizer import Tokenizer
from gencore.transformer import Transformer, TransformerConfig, deeper
from textgen.folders import files_of, layout_of, read_state, tokenizer_of
from textgen.run import Trace
from textgen.text import Settings, as_list, joined, logprobs_of, made_text, pieces, score, started

PREPARED = {None: column_major, "int8": int8_linears, "int4": int4_linears}              # how weights lie for generating


@dataclass(frozen=True)
class CausalLMConfig:
    """A language model of any family that textgen knows."""
    vocab: Size = 8192                                           # V
    context: Size = 512                                          # positions that it was made for
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    tied: bool = True                                            # the head is the token table
    learned_positions: bool = False                              # a table of `context` rows is added to the tokens (GPT-2)
    embedding_scale: Positive | None = None                      # on the token table (Gemma: the square root of the width)
    logit_softcap: Positive | None = None                        # logits become cap * tanh(logit / cap) (Gemma 2)
    family: str = "llama"                                        # layout of the folder that save_pretrained writes
    bos: int | None = None                                       # special ids, None = there is none
    eos: tuple[int, ...] = ()
    pad: int | None = None

    def __post_init__(self):
        check_fields(self)
        check_ids(self, {"bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad})


class CausalLM(nn.Module):
    """ids (B,T) -> logits (B,T,V)."""

    def __init__(self, cfg, tokenizer=None):
        super().__init__()
        self.cfg, self.tokenizer = cfg, tokenizer
        self.name, self.digest = None, None                      # of the folder it came from, for recipes
        self.compile, self.quantize = False, None                # how it generates
        self._compiled, self._compiled_of = {}, []               # steps over 256, 512, ... positions; the weights that they read
        D = cfg.transformer.width
        self.embedding = nn.Embedding(cfg.vocab, D)
        self.positions = LearnedPositions(cfg.context, D) if cfg.learned_positions else None
        self.transformer = Transformer(cfg.transformer)
        self.head = nn.Linear(D, cfg.vocab, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        if cfg.tied:
            self.head.weight = self.embedding.weight
        if self.positions is not None:
            nn.init.normal_(self.positions.table.weight, std=0.02)

    def forward(self, ids, *, mask=None, positions=None, cache=None):
        """ids (B,T) -> logits (B,T,V); with a cache they continue what it holds. mask: beside causal().

        More ids than cfg.context are taken as they are by rotary positions, which go on, and are an InputError with learned ones."""
        return capped(self.head(self.hidden(ids, mask=mask, positions=positions, cache=cache)), self.cfg.logit_softcap)

    def last_logits(self, ids, *, mask=None, positions=None, cache=None):
        """ids (B,T) -> logits (B,1,V) of the last position: all that generating needs."""
        last = self.hidden(ids, mask=mask, positions=positions, cache=cache)[:, -1:]
        return capped(self.head(last), self.cfg.logit_softcap)

    def hidden(self, ids, *, mask=None, positions=None, cache=None):
        """ids (B,T) -> states before the head (B,T,D)."""
        B, T = dims("ids", ids, "B T")
        if not T:
            raise InputError(f"ids: expected at least one token, got shape ({B}, 0)")
        x = rows_of(self.embedding, ids, "ids")                                          # (B, T, D)
        if self.cfg.embedding_scale is not None:
            x = x * torch.tensor(self.cfg.embedding_scale, dtype=x.dtype)                # rounded as the table is
        if self.positions is not None:
            if positions is None:
                positions = torch.arange(T, device=ids.device) + (0 if cache is None else cache.length)
            x = x + self.positions(positions)
        mask = causal() if mask is None else causal() & mask
        return self.transformer(x, mask, positions=positions, cache=cache)

    def loss(self, ids, targets, *, documents=None):
        """ids, targets (B,T), -100 = no target -> (summed cross-entropy, number of targets).

        documents (B,T): which document of its row a token is of: attention stops at their borders, and positions start again.
        More ids than cfg.context: as in `forward`."""
        mask, positions = (None, None) if documents is None else (of_documents(documents), restarting(documents))
        hidden, targets = self.hidden(ids, mask=mask, positions=positions).flatten(0, 1), targets.flatten()
        if documents is not None:                               # of a conversation half is read alone: only what is learnt goes through the head
            hidden, targets = hidden[targets != IGNORED], targets[targets != IGNORED]
        if not isinstance(self.head, nn.Linear):                # int8, int4: no matrix that gradients could be taken of
            check_targets(targets, self.cfg.vocab)
            logits = capped(self.head(hidden).float(), self.cfg.logit_softcap)
            return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"), (targets != IGNORED).sum()
        return chunked_cross_entropy(hidden, self.head.weight, targets, softcap=self.cfg.logit_softcap)

    # ---- words ----

    def generate(self, prompt="", *, max_new_tokens=100, temperature=0.8, top_k=None, top_p=0.95, min_p=None, repetition_penalty=1.0,
                 stop=(), window=None, seed=None, constraint=None, draft=None, beams=1, length_penalty=1.0):
        """A prompt, or a list of them -> the prompt and what follows, as Text (a str with its recipe and log-probabilities), or a list.

        temperature=0: the likeliest token always. seed: row i of a list draws what seed + i draws alone. window: tokens looked back at; a text that
        outgrows the context goes on, and looks back at its last tokens alone, as many as the context has (learned positions: an InputError).
        constraint: a regular expression (str) or JSON schema (dict) that what follows matches, unless max_new_tokens cut it (needs llguidance).
        draft: a small CausalLM of the same tokenizer that guesses ahead: the same greedy tokens, the same chances, sooner (.acceptance).
        beams: above 1 nothing is drawn, a beam search finds a likely text, scored by its log-probability / tokens ** length_penalty.
        On a CPU four rows and more read copies of the weights, made for their time (gencore/packed.py)."""
        settings = self._settings(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, window, constraint, draft, beams,
                                  length_penalty)
        prompts = as_list(prompt)
        seeds, trace = seeds_of(seed, len(prompts)), Trace()
        lists, rows = started(self, prompts, settings)
        with resting(self):
            texts = joined(prompts, pieces(self, lists, rows, seeds=seeds, settings=settings, trace=trace))
        made = [made_text(text, self._recipe(asked, s, settings), logprobs_of(self.tokenizer, row.said, values), trace.tally)
                for text, asked, s, row, values in zip(texts, prompts, seeds, rows, trace.by_row(len(rows)))]
        return made[0] if isinstance(prompt, str) else made

    def stream(self, prompt="", *, max_new_tokens=100, temperature=0.8, top_k=None, top_p=0.95, min_p=None, repetition_penalty=1.0,
               stop=(), window=None, seed=None, constraint=None, draft=None):
        """As `generate` for one prompt: yields what follows it, piece by piece."""
        if not isinstance(prompt, str):
            raise InputError(f"stream takes one prompt as str, got {type(prompt).__name__}: use generate for a list")
        settings = self._settings(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, window, constraint, draft)
        return self._resting_stream(pieces(self, *started(self, [prompt], settings), seeds=seeds_of(seed, 1), settings=settings))

    def _resting_stream(self, parts):
        with resting(self):
            for _, piece in parts:
                yield piece

    def check_tokenizer(self):
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer: CausalLM(cfg, tokenizer), or load a folder that has one")

    def _settings(self, *values):
        self.check_tokenizer()
        return Settings(*values, compile=self.compile, quantize=self.quantize)

    def lowered(self):
        """What a recipe's settings say of the weights' dtype: nothing of float32."""
        dtype = self.embedding.weight.dtype
        return {} if dtype == torch.float32 else {"dtype": str(dtype).removeprefix("torch.")}

    def _recipe(self, prompt, seed, settings):
        draft = settings.draft
        if self.digest is None or (draft is not None and draft.digest is None):
            return None
        values = {f.name: getattr(settings, f.name) for f in fields(settings)} | self.lowered()
        if draft is not None:
            values["draft"] = {"model": draft.name, "digest": draft.digest, "quantize": draft.quantize, **draft.lowered()}
        return Recipe.made("text", self.name, self.digest, inputs={"prompt": prompt}, seed=seed, settings=values)

    def logprobs(self, text):
        """A text, or a list of them -> Logprobs (.tokens, .values, .total), or a list: how likely each token is after those before it.

        The first follows the token that begins a text."""
        self.check_tokenizer()
        texts = as_list(text)
        with resting(self):
            scored = [logprobs_of(self.tokenizer, ids, values) for ids, values in score(self, texts)]
        return scored[0] if isinstance(text, str) else scored

    def trainable(self, context=None, layers=None):
        """A copy of the weights in another model, laid out for training: loading lays matrices out for decoding.

        context: tokens of its windows, more than now with rotary positions alone, which go on; the farther ones are still to be learnt.
        Fewer are windows of fewer tokens. layers: as many as now or more; those that are added change nothing until they are trained."""
        if self.quantize:
            raise InputError(f"{self.quantize} weights are for generating: train the model that was loaded without quantize")
        if any(".base_layer." in name for name, _ in self.named_parameters()):
            raise InputError("this model has an adapter in it: go on from LoRA.merged()")
        cfg, tokenizer = self.cfg, self.tokenizer
        if context is not None and whole("context", context, 1) > cfg.context:
            if cfg.learned_positions:
                raise InputError(f"context={context} is longer than this model's table of {cfg.context} positions: "
                                 f"give context={cfg.context} or less")
            cfg = replace(cfg, context=context)
            if tokenizer is not None:
                tokenizer = Tokenizer(tokenizer.engine, {**tokenizer.config, "model_max_length": context})
        lm = CausalLM(cfg, tokenizer).to(self.embedding.weight.device)
        lm.load_state_dict(self.state_dict())
        if layers is not None and whole("layers", layers, cfg.transformer.layers) > cfg.transformer.layers:
            lm.transformer = deeper(lm.transformer, layers)
            lm.cfg = replace(cfg, transformer=lm.transformer.cfg)
        return lm

    def train(self, mode=True):
        """As every module's. Weights that go to be trained are those of no folder any more: without recipes until they are saved."""
        if mode:
            self.name = self.digest = None
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        """What `to` calls: steps that were compiled for another device or dtype are forgotten."""
        self._compiled.clear()
        return super()._apply(fn, recurse)

    def fast_stepper(self, length):
        """A compiled Stepper for one text of `length` tokens, or None when it does not fit."""
        size = 256                                               # a step looks at every position that it was compiled for
        while size < length:
            size *= 2
        size = min(size, self.cfg.context)
        if length > size or self.cfg.transformer.by_length:
            return None
        weights = [(p.data_ptr(), None if p.is_inference() else p._version) for p in self.state_dict().values()]
        if weights != self._compiled_of:                         # they were trained, or loaded anew, since
            self._compiled.clear()
            self._compiled_of = weights
        if size not in self._compiled:
            step_linears(self)                                   # of the weights as they are now
            self._compiled[size] = CompiledStep(self.last_logits, self.cfg.transformer, size, like=self.embedding.weight)
        return self._compiled[size].stepper()

    # ---- folders ----

    @classmethod
    def from_pretrained(cls, name_or_folder, *, dtype=torch.float32, device="cpu", compile=False, quantize=None):
        """A shipped name ("novelist"), a folder, or a Hub id -> the model with its tokenizer, in eval mode.

        compile: generation's steps go through torch.compile (half a minute once). quantize="int8" or "int4": weights of so many bits, CPU only."""
        if quantize not in list(PREPARED):
            raise InputError(f'quantize should be None, "int8" or "int4", got {quantize!r}{nearest(quantize, ["int8", "int4"])}')
        dtype, device, folder = floating(dtype), present(device), resolve(name_or_folder, "textgen")
        cfg, state = read_folder(folder)
        with torch.device("meta"):
            model = cls(cfg)
        model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in state.items()}, assign=True)
        if cfg.tied:
            model.head.weight = model.embedding.weight
        model.requires_grad_(True)
        model.tokenizer = tokenizer_of(folder, cfg.vocab)
        model.name, model.digest = lasting_name(folder), made_with(folder)
        model.compile, model.quantize = compile, quantize
        PREPARED[quantize](model)
        return model.eval()

    def save_pretrained(self, folder, *, dtype=None):
        """Writes a folder that `from_pretrained` and transformers' AutoModelForCausalLM open, and makes it the one that recipes name; not where
        `dtype` rounds what generates here. dtype: of the weights in the file."""
        save_folder(folder, self.files(dtype=dtype))
        exact = dtype is None or survives(self, dtype, own=True)
        self.name, self.digest = lasting_name(folder), made_with(folder) if exact else None

    def files(self, *, dtype=None):
        """What save_pretrained writes, for gencore.checkpoint.save_folder and fit's export."""
        if self.quantize:
            raise InputError(f"{self.quantize} weights are for generating: save the model that was loaded without quantize")
        special = {key: value for key, value in special_fields(self.cfg).items() if value is not None}
        return {**files_of(self, dtype, kind="CausalLM", tied=tied_names(self.cfg)), "generation_config.json": special}


def read_folder(folder):
    """A folder in a family's layout -> (CausalLMConfig, {our name: tensor}). Refused before anything is allocated when they don't fit."""
    layout, generation = layout_of(folder, CausalLM), folder / "generation_config.json"
    cfg = read_config(layout, folder / "config.json")
    if generation.is_file():
        said = read_json(generation)
        with naming(generation):
            check_values(said, BY_NAME)
            cfg = replace(cfg, eos=tuple(dict.fromkeys((*cfg.eos, *special_ids({**said, "vocab_size": cfg.vocab})["eos"]))))
    shapes = tensor_shapes(folder)
    both = replace(cfg, tied=False) if "lm_head.weight" in shapes else cfg       # a head in the file may say otherwise than the configuration
    state = read_state(folder, layout, both, CausalLM, tied=tied_names(both))
    if cfg.tied and not both.tied:
        if not torch.equal(state["head.weight"], state["embedding.weight"]):
            return both, state
        del state["head.weight"]
    return cfg, state if not cfg.tied else {**state, "head.weight": state["embedding.weight"]}


def tied_names(cfg):
    """Our copies of other tensors: in no file."""
    return ("head.weight",) if cfg.tied else ()


def usual(cfg):
    """The same model in the usual words, so that equal models compare equal: None for what a field would say anyway."""
    stack = cfg.transformer
    N, G, E = head_sizes(stack.width, stack.attention)
    scale = None if stack.attention.scale == E ** -0.5 else stack.attention.scale
    attention = replace(stack.attention, kv_heads=None if G == N else G, head_width=None if E * N == stack.width else E, scale=scale)
    windows = tuple(stack.window_of(layer) for layer in range(stack.layers))
    norm = stack.norm if stack.norm.kind == "layer" else replace(stack.norm, bias=NormConfig.bias)        # only layer norms have one
    local = stack.local_rotary if any(windows) and stack.local_rotary != stack.rotary else None
    stack = replace(stack, attention=attention, windows=windows if any(windows) else None, local_rotary=local, norm=norm)
    return replace(cfg, transformer=stack)


def special_ids(config):
    """bos_token_id, eos_token_id (one or a list), pad_token_id -> our fields.

    An id that no token has is none, with a warning: a GPT-2 of few tokens keeps 50256, which transformers never meets either."""
    vocab = config.get("vocab_size")

    def here(name):
        given = config.get(name)
        ids = list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
        known = [i for i in ids if not (isinstance(i, int) and isinstance(vocab, int)) or 0 <= i < vocab]
        if known != ids:
            warnings.warn(f"{name}: {[i for i in ids if i not in known]} are ids of none of the {vocab} tokens: left out", stacklevel=2)
        return tuple(known)

    bos, eos, pad = map(here, ("bos_token_id", "eos_token_id", "pad_token_id"))
    return {"bos": bos[0] if bos else None, "pad": pad[0] if pad else None, "eos": eos}


def special_fields(cfg):
    """The other way."""
    eos = cfg.eos[0] if len(cfg.eos) == 1 else list(cfg.eos) or None
    return {"bos_token_id": cfg.bos, "eos_token_id": eos, "pad_token_id": cfg.pad}


def again(recipe):
    """The maker that gencore.replay calls."""
    settings = dict(recipe.settings)
    lm = CausalLM.from_pretrained(recipe.model, dtype=settings.pop("dtype", "float32"), compile=settings.pop("compile", False),
                                  quantize=settings.pop("quantize", None))
    if (asked := settings.get("draft")) is not None:
        draft = settings["draft"] = CausalLM.from_pretrained(resolve(asked["model"], "textgen", hub=False), quantize=asked["quantize"],
                                                             dtype=asked.get("dtype", "float32"))
        if draft.digest[:16] != asked["digest"][:16]:                # the weights
            raise ReplayError(f"the draft {asked['model']} has other weights than when the text was made")
    return lm.generate(recipe.inputs["prompt"], seed=recipe.seed, **settings)


register("text", again)
