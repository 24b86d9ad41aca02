"""Families: a model here and the same model in another library's layout, as a table that is read in both directions.

A family names the fields of the configuration (`to_ours`, `to_theirs`) and lists rules for the tensors. In a name, {n} and {m}
stand for any number: one rule serves every layer.

    rules = (Rename("model.norm.weight", "transformer.norm.weight"),
             Split(("layers.{n}.q.weight", "layers.{n}.k.weight"), "blocks.{n}.qk.weight", sizes=(64, 32)),   # theirs are rows of ours
             Transpose("h.{n}.mlp.c_fc.weight", "blocks.{n}.mlp.up.weight"),
             Tie("lm_head.weight", "embedding.weight"),                        # their copy of a tensor that we hold once
             Drop("h.{n}.attn.bias"))                                          # in old files, and made anew here

`rules` is a function of our configuration, so sizes and options are plain Python there."""
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch

from gencore.check import CheckpointError, CommonthreadError, ConfigError, nearest
from gencore.checkpoint import naming, read_json
from gencore.config import Count, Few, Positive, Share, Size, Within, check_values, to_dict

HINTS = {hint: names.split() for hint, names in (                    # what fields of their configurations hold, wherever they stand
    (Few, "num_hidden_layers num_layers num_decoder_layers n_layer encoder_layers decoder_layers layers_per_block type_vocab_size "
          "num_attention_heads num_heads num_key_value_heads n_head encoder_attention_heads decoder_attention_heads patch_size num_channels"),
    (Size, "vocab_size hidden_size intermediate_size n_embd n_inner d_model d_ff d_kv encoder_ffn_dim decoder_ffn_dim head_dim image_size "
           "sliding_window max_position_embeddings original_max_position_embeddings n_positions relative_attention_num_buckets "
           "relative_attention_max_distance sliding_window_pattern in_channels out_channels latent_channels norm_num_groups sample_size "
           "attention_head_dim cross_attention_dim caption_channels"),
    (Count, "bos_token_id decoder_start_token_id image_token_index image_token_id max_window_layers"),
    (Annotated[int, Within(-1, 2 ** 31)], "pad_token_id"),           # -1: none, in early files
    (Count | tuple[Count, ...], "eos_token_id"),
    (Positive, "rope_theta rope_local_base_freq factor low_freq_factor high_freq_factor query_pre_attn_scalar scaling_factor "
               "interpolation_scale attn_logit_softcapping final_logit_softcapping flow_shift"),
    (Share, "rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps partial_rotary_factor dropout dropout_rate resid_pdrop "
            "hidden_dropout_prob classifier_dropout"),
    (bool, "tie_word_embeddings attention_bias mlp_bias scale_embedding scale_attn_weights use_sliding_window mid_block_add_attention"),
    (str, "hidden_act hidden_activation activation_function feed_forward_proj rope_type type"),
    (tuple[Size, ...], "block_out_channels"), (tuple[str, ...], "layer_types down_block_types up_block_types"),
    (dict, "rope_parameters rope_scaling"))}
BY_NAME = {name: hint for hint, names in HINTS.items() for name in names}


@dataclass(frozen=True)
class Convert:
    """One tensor there, one here, through a function each way."""
    theirs: str
    ours: str
    forth: Callable                              # theirs -> ours
    back: Callable                               # ours -> theirs

    def to_ours(self, tensors):
        return {self.ours: self.forth(tensors[self.theirs])}

    def to_theirs(self, tensors):
        return {self.theirs: self.back(tensors[self.ours])}


def Rename(theirs, ours):
    """The same tensor under another name."""
    return Convert(theirs, ours, lambda t: t, lambda t: t)


def Transpose(theirs, ours):
    """A matrix that the other side stores as (in, out)."""
    return Convert(theirs, ours, lambda t: t.transpose(0, 1), lambda t: t.transpose(0, 1))


def Reshape(theirs, ours, *, to_theirs, to_ours):
    """The same numbers in another shape: a 1x1 convolution that is a Linear here; the shapes are given."""
    return Convert(theirs, ours, lambda t: t.reshape(to_ours), lambda t: t.reshape(to_theirs))


@dataclass(frozen=True)
class Split:
    """Several tensors there are slices of one here, along `dim`: q, k, v of a fused projection."""
    theirs: tuple[str, ...]
    ours: str
    sizes: tuple[int, ...]
    dim: int = 0

    def to_ours(self, tensors):
        parts = [tensors[name] for name in self.theirs]
        for name, part, size in zip(self.theirs, parts, self.sizes):
            rest = [n for i, n in enumerate(parts[0].shape) if i != self.dim]
            if part.dim() <= self.dim or part.shape[self.dim] != size or [n for i, n in enumerate(part.shape) if i != self.dim] != rest:
                raise CheckpointError(f'tensor "{name}": dimension {self.dim} should be {size} by the configuration, the others as in '
                                      f'"{self.theirs[0]}", got shape {tuple(part.shape)}')
        return {self.ours: torch.cat(parts, self.dim)}

    def to_theirs(self, tensors):
        return dict(zip(self.theirs, tensors[self.ours].split(self.sizes, self.dim)))


@dataclass(frozen=True)
class Join:
    """One tensor there, several here, along `dim`."""
    theirs: str
    ours: tuple[str, ...]
    sizes: tuple[int, ...]
    dim: int = 0

    def to_ours(self, tensors):
        shape = tuple(tensors[self.theirs].shape)
        if len(shape) <= self.dim or shape[self.dim] != sum(self.sizes):
            raise CheckpointError(f'tensor "{self.theirs}": dimension {self.dim} should be {sum(self.sizes)} by the configuration, got shape {shape}')
        return dict(zip(self.ours, tensors[self.theirs].split(self.sizes, self.dim)))

    def to_theirs(self, tensors):
        return {self.theirs: torch.cat([tensors[name] for name in self.ours], self.dim)}


@dataclass(frozen=True)
class Copies:
    """Several equal tensors there, one here."""
    theirs: tuple[str, ...]
    ours: str

    def to_ours(self, tensors):
        first, *others = (tensors[name] for name in self.theirs)
        for name, other in zip(self.theirs[1:], others):
            if other.shape != first.shape or other.device.type != "meta" and not torch.equal(other, first):
                raise CheckpointError(f'"{name}" should equal "{self.theirs[0]}", of which it is a copy, and differs')
        return {self.ours: first}

    def to_theirs(self, tensors):
        return {name: tensors[self.ours] for name in self.theirs}


@dataclass(frozen=True)
class Tie:
    """Their copy of a tensor that another rule delivers: never written, may be there when read, and must be equal."""
    theirs: str
    ours: str


@dataclass(frozen=True)
class Drop:
    """Theirs only: may be there when read, is not needed."""
    theirs: str


@dataclass(frozen=True)
class Family:
    """One architecture of another library."""
    name: str                                    # as their config.json has it in model_type (or _class_name)
    to_ours: Callable                            # their config dict -> our configuration
    to_theirs: Callable                          # our configuration -> their config dict
    rules: Callable                              # our configuration -> rules
    aliases: tuple[tuple[str, str], ...] = ()    # (regular expression, replacement): other spellings of their names

    def import_state(self, cfg, theirs):
        """{their name: tensor} -> {our name: tensor}. CheckpointError names what is missing or left over."""
        left = {}
        for name, tensor in theirs.items():
            if left.setdefault(self._spelt(name), tensor) is not tensor:
                raise CheckpointError(f'the weights have "{self._spelt(name)}" twice, once as "{name}": which of the two counts is not known')
        ours, ties = {}, []
        for rule in self.rules(cfg):
            names = _tuple(rule.theirs)
            found = _bindings(names, left)
            if not found and not isinstance(rule, (Tie, Drop)):
                raise CheckpointError(f'the weights have no tensor "{names[0]}"{nearest(names[0], left)}: expected the layout of {self.name}')
            for numbers in found:
                own = {name: left.pop(_filled(name, numbers), None) for name in names}
                missing = [_filled(name, numbers) for name, tensor in own.items() if tensor is None]
                if missing:
                    raise CheckpointError(f'the weights have no tensor "{missing[0]}"{nearest(missing[0], left)}')
                if isinstance(rule, Tie):
                    ties.append((_filled(rule.theirs, numbers), own[rule.theirs], _filled(rule.ours, numbers)))
                elif not isinstance(rule, Drop):
                    ours.update({_filled(name, numbers): tensor for name, tensor in _made(rule.to_ours, own, numbers).items()})
        if left:
            raise CheckpointError(f'the weights have a tensor "{min(left)}" that {self.name} does not ({len(left)} such in all)')
        for name, tensor, twin in ties:
            if tensor.device.type != "meta" and (twin not in ours or not torch.equal(tensor, ours[twin])):
                raise CheckpointError(f'"{name}" should equal the tensor that it is tied to, and differs')
        return ours

    def export_state(self, cfg, ours):
        """{our name: tensor} -> {their name: tensor}: a state dict that their library loads; tied copies are left out."""
        left, theirs = dict(ours), {}
        for rule in self.rules(cfg):
            if isinstance(rule, (Tie, Drop)):
                continue
            names = _tuple(rule.ours)
            found = _bindings(names, left)
            if not found:
                raise CheckpointError(f'the model has no tensor "{names[0]}", which {self.name} needs')
            for numbers in found:
                own = {name: left.pop(_filled(name, numbers), None) for name in names}
                missing = [_filled(name, numbers) for name, tensor in own.items() if tensor is None]
                if missing:
                    raise CheckpointError(f'the model has no tensor "{missing[0]}", which {self.name} needs')
                theirs.update({_filled(name, numbers): tensor for name, tensor in rule.to_theirs(own).items()})
        if left:
            raise CheckpointError(f'the layout of {self.name} has no place for "{min(left)}" ({len(left)} such in all)')
        return theirs

    def parts(self, cfg, shapes):
        """{our name: shape} of matrices -> [(their name, our name, (first, last) of its rows, stored as (in, out) there)].

        For what stands beside a matrix rather than in its place, such as a low-rank adapter."""
        found = []
        for rule in self.rules(cfg):
            if isinstance(rule, (Tie, Drop, Join, Copies)):
                continue
            for numbers in _bindings((rule.ours,), shapes):
                ours, first = _filled(rule.ours, numbers), 0
                rows, columns = shapes[ours]
                for theirs, size in zip(_tuple(rule.theirs), rule.sizes if isinstance(rule, Split) else (rows,)):
                    turned = isinstance(rule, Convert) and rule.back(torch.empty(1, 2, device="meta")).shape == (2, 1)
                    found.append((_filled(theirs, numbers), ours, (first, first + size), turned))
                    first += size
        return found

    def check_shapes(self, cfg, theirs, ours):
        """{their name: shape}, {our name: shape}: CheckpointError when the weights do not fit; nothing is allocated."""
        made = self.import_state(cfg, {name: torch.empty(tuple(shape), device="meta") for name, shape in theirs.items()})
        for name, shape in ours.items():
            if name not in made:
                raise CheckpointError(f'the weights give nothing for "{name}" of shape {tuple(shape)}')
            if tuple(made[name].shape) != tuple(shape):
                raise CheckpointError(f'"{name}" should have shape {tuple(shape)} by the configuration, the weights give {tuple(made[name].shape)}')
        extra = sorted(made.keys() - ours.keys())
        if extra:
            raise CheckpointError(f'the weights give "{extra[0]}", which the configuration has not')

    def _spelt(self, name):
        for pattern, replacement in self.aliases:
            name = re.sub(pattern, replacement, name, count=1)
        return name


def _made(convert, own, numbers):
    """convert(own), with the layer's number in what it complains about."""
    try:
        return convert(own)
    except CheckpointError as error:
        raise CheckpointError(_filled(str(error), numbers)) from None


def _tuple(names):
    return (names,) if isinstance(names, str) else names


def _bindings(patterns, tensors):
    """The numbers for which a tensor of the first pattern is there: [{"n": 0}, {"n": 1}, ...], [{}] for a name without numbers."""
    parts = re.split(r"\{(\w)\}", patterns[0])
    if len(parts) == 1:
        return [{}] if patterns[0] in tensors else []
    pattern = re.compile("".join(re.escape(part) if i % 2 == 0 else rf"(?P<{part}>\d+)" for i, part in enumerate(parts)))
    return [match.groupdict() for match in map(pattern.fullmatch, list(tensors)) if match]


def _filled(pattern, numbers):
    for letter, number in numbers.items():
        pattern = pattern.replace("{" + letter + "}", number)
    return pattern


def read_config(family, path):
    """config.json in the layout of a family -> our configuration; what is refused names the file and its field."""
    config = read_json(path)
    with naming(path):
        check_values(config, BY_NAME)
        try:
            return family.to_ours(config)
        except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
            if isinstance(error, CommonthreadError):
                raise
            raise ConfigError(f"a field of the {family.name} layout holds what it can't: {error!r}") from error     # one that BY_NAME lacks


def read_fields(table, config, name):
    """table of (their field, our dotted field, default) -> nested dict of our fields. `...` as default: the field must be there."""
    ours = {}
    for theirs, dotted, default in table:
        value = config.get(theirs, default)
        if value is ...:
            raise ConfigError(f"config.json of a {name} model lacks the field {theirs}{nearest(theirs, config)}")
        if value is None and default is not None and BY_NAME.get(theirs) in (Few, Size):         # sizes are reckoned with
            raise ConfigError(f"config.json of a {name} model: {theirs} should have a value, got null")
        *parents, leaf = dotted.split(".")
        place = ours
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return ours


def write_fields(table, cfg):
    """The same table the other way: our configuration -> {their field: value}."""
    theirs = {}
    for name, dotted, _ in table:
        value = cfg
        for part in dotted.split("."):
            value = getattr(value, part)
        theirs[name] = value
    return theirs


def expect_fields(config, wanted, name):
    """Refuses a configuration whose fields say something that this family here does not do: {field: values that it does}."""
    for field, values in wanted.items():
        if field in config and config[field] not in values:
            listed = " or ".join(map(repr, values))
            raise ConfigError(f"config.json of a {name} model: {field} should be {listed}, got {config[field]!r}")


def expect_said(cfg, back, name, ignored=()):
    """Refuses to write a configuration that would be read `back` as another one: the layout has no words for what differs."""
    for field, (ours, read) in sorted(_differences(to_dict(cfg), to_dict(back))):
        if field not in ignored:
            raise ConfigError(f"the {name} layout can't say this model's {field}={ours!r} (it would be read as {read!r}): "
                              f"choose another family, or another {field}")


def _differences(ours, read, path=""):
    """Dotted fields in which two dicts differ, with both values; a part that only one side has is one difference."""
    for key in ours:
        if isinstance(ours[key], dict) and isinstance(read[key], dict) and ours[key].keys() == read[key].keys():
            yield from _differences(ours[key], read[key], f"{path}{key}.")
        elif ours[key] != read[key]:
            yield path + key, (ours[key], read[key])
