"""Adapters: small matrices beside those inside a network's blocks, which stay as they are (LoRA, Hu et al. 2021); folders that `peft` opens.

A network here has its blocks at `network.transformer.blocks`, its configuration at `network.cfg`, and a Family whose layout it is exported to.
Several matrices there may be one here (query, key and value): a row of the product B A belongs to one of them, so B is cut by rows and A is
the same for all; adapters that come from elsewhere stand in one as blocks, with their ranks summed. textgen.LoRA and imagegen.PainterLoRA
say which network it is, and what is made of it."""
import math
import re
from pathlib import Path

import torch
from torch import nn

from gencore.check import CheckpointError, InputError, whole
from gencore.checkpoint import load_tensors, naming, read_json
from gencore.families import expect_fields

BASE = "base.json"                                        # which weights the adapter was made for: peft has no place for their digest
PREFIX = "base_model.model."
UNUSED = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication", "alora_invocation_tokens", "kasa_config",
          "use_qalora", "use_bdlora", "target_parameters", "arrow_config")
KNOWN = {"peft_type": ("LORA",), "bias": ("none",), **dict.fromkeys(UNUSED, (False, None, [], {})),
         "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal")}     # what an adapter_config.json may say; others change the base


class Adapter:
    """`network` with an adapter in it: in training nothing but the adapter moves."""

    def __init__(self, network, family, ranks, *, scale, base, dropout=0.0):
        """network: a copy, which is changed. ranks: {name of a matrix: rank}. scale: how many times B A counts. base: {"name", "digest"}."""
        from peft import LoraConfig, inject_adapter_in_model
        self.base, self.ranks, self.scale = base, ranks, scale
        self.parts, every = (parts(network, family, names) for names in (ranks, linears(network)))
        self.paths = [theirs.removesuffix(".weight") for theirs, *_ in every]                        # of all matrices that could be changed
        config = LoraConfig(r=1, lora_dropout=dropout, target_modules=list(ranks), rank_pattern=dict(ranks),
                            alpha_pattern={name: scale * rank for name, rank in ranks.items()})
        self.network = inject_adapter_in_model(config, network)

    def matrices(self):
        """{name of a matrix here: (A (r,in), B (out,r))}, the parameters themselves."""
        modules = dict(self.network.named_modules())
        return {name: (modules[name].lora_A["default"].weight, modules[name].lora_B["default"].weight) for name in self.ranks}

    @torch.no_grad()
    def merged_state(self):
        """-> {name: tensor} of the network alone, its weights W + scale * B A."""
        state = {name.replace(".base_layer.", "."): tensor for name, tensor in self.network.state_dict().items() if ".lora_" not in name}
        for name, (A, B) in self.matrices().items():
            state[f"{name}.weight"] = state[f"{name}.weight"] + self.scale * B @ A
        return state

    def files(self, task=None):
        """Files of a peft adapter, for save_folder; task: peft's task_type."""
        tensors, ranks, matrices = {}, {}, self.matrices()
        for theirs, ours, (first, last), _ in self.parts:
            A, B = matrices[ours.removesuffix(".weight")]
            path = theirs.removesuffix(".weight")
            tensors[f"{PREFIX}{path}.lora_A.weight"], tensors[f"{PREFIX}{path}.lora_B.weight"] = A.detach(), B.detach()[first:last]
            ranks[path] = len(A)
        rank = max(ranks.values())
        others = {path: r for path, r in ranks.items() if r != rank}
        kind = lambda path: re.sub(r"^.*?\.\d+\.", "", path)                  # what stands behind the block's number
        kinds = {kind(path) for path in ranks}                                 # told to peft, where it is these in every block
        config = {"peft_type": "LORA", "task_type": task, "base_model_name_or_path": self.base["name"], "r": rank,
                  "lora_alpha": self.scale * rank, "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
                  "fan_in_fan_out": any(turned for *_, turned in self.parts),
                  "target_modules": sorted(kinds if sum(kind(path) in kinds for path in self.paths) == len(ranks) else ranks),
                  "rank_pattern": others, "alpha_pattern": {path: self.scale * r for path, r in others.items()}}
        return {"adapter_config.json": config, "adapter_model.safetensors": tensors, BASE: self.base}


def ranks_of(network, targets, rank, known):
    """{name of a matrix of the blocks: rank} of those that `targets` names, some of `known`."""
    whole("rank", rank, 1)
    if not targets or not set(targets) <= set(known):
        raise InputError(f"targets should be some of {', '.join(known)}, got {targets!r}")
    here = {name.rpartition(".")[2] for name in linears(network)}
    if targets != known and not set(targets) <= here:
        raise InputError(f"targets should be matrices of this model, {', '.join(kind for kind in known if kind in here)}, got {targets!r}")
    return {name: rank for name in linears(network) if name.rpartition(".")[2] in targets}


def read_adapter(network, family, folder, base):
    """The folder of an adapter, from here or from peft -> the Adapter of a network (a copy, which is changed); another base is refused."""
    folder = Path(folder)
    config = read_json(folder / "adapter_config.json")
    with naming(folder / "adapter_config.json"):
        expect_fields(config, KNOWN, "LoRA")
    check_strength(config, folder)
    check_base(base, folder)
    scale, pieces = read_pieces(network, family, folder, config)
    shapes = linears(network)
    made = {name: stacked(its, rows=shapes[name][0]) for name, its in pieces.items()}
    adapter = Adapter(network, family, {name: len(A) for name, (A, _) in made.items()}, scale=scale, base=base)
    with torch.no_grad():
        for name, (A, B) in adapter.matrices().items():
            A.copy_(made[name][0])
            B.copy_(made[name][1])
    return adapter


def base_of(model):
    """What an adapter remembers of the model that it was made for, which has a name and a digest: those of its weights alone."""
    return {"name": model.name, "digest": model.digest and model.digest[:16]}


def linears(network):
    """{name: shape of its matrix} of the linear layers inside a network's blocks."""
    return {f"transformer.blocks.{name}": tuple(module.weight.shape) for name, module in network.transformer.blocks.named_modules()
            if isinstance(module, nn.Linear)}


def parts(network, family, names):
    """What these matrices are in the layout that the network is exported to: as Family.parts."""
    shapes = linears(network)
    return family.parts(network.cfg, {f"{name}.weight": shapes[name] for name in names})


def check_base(base, folder):
    """CheckpointError when the adapter says which weights it was made for and these are others."""
    made_for = read_json(folder / BASE) if (folder / BASE).is_file() else {}
    wanted = made_for.get("digest")
    if wanted and base["digest"] and base["digest"] != wanted:
        raise CheckpointError(f"{folder} is an adapter for {made_for.get('name')} (weights {wanted}), this model is {base['name']} "
                              f"(weights {base['digest']}): load the model that it was made for")


def read_pieces(network, family, folder, config):
    """Adapter folder -> (scale, {name of a matrix here: [(first row, last row, A, B scaled to that scale), ...]})."""
    tensors, shapes = load_tensors(folder / "adapter_model.safetensors"), linears(network)
    known = {theirs.removesuffix(".weight"): (ours.removesuffix(".weight"), rows) for theirs, ours, rows, _ in parts(network, family, shapes)}
    scale, pieces = scale_of(config, "", config["r"]), {}
    if (other := next((name for name in tensors if not re.search(r"\.lora_[AB]\.weight$", name)), None)) is not None:
        raise CheckpointError(f'{folder} holds "{other}": pairs inside the blocks are read here, no adapter of the token table or the head')
    for path in sorted({name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in tensors}):
        if path not in known:
            raise CheckpointError(f'{folder} is an adapter for another base: it changes "{path}", which this model has not inside its blocks')
        name, (first, last) = known[path]
        A, B = (tensors.get(f"{PREFIX}{path}.lora_{letter}.weight") for letter in "AB")
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1]:
            raise CheckpointError(f'{folder}: "{path}" should have lora_A (r, in) and lora_B (out, r)')
        there, here = (len(B), A.shape[1]), (last - first, shapes[name][1])
        if there != here:
            raise CheckpointError(f'{folder} is an adapter for another base: "{path}" has the shape {there} there and {here} in this model')
        pieces.setdefault(name, []).append((first, last, A.float(), B.float() * (scale_of(config, path, len(A)) / scale)))
    return scale, pieces


def check_strength(config, folder):
    """CheckpointError unless rank and alphas of an adapter_config.json are numbers that make one."""
    rank, patterns = config.get("r"), config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{folder / 'adapter_config.json'}: alpha_pattern should be an object of patterns and alphas, got {patterns!r:.80}")
    alphas = [config.get("lora_alpha"), *patterns.values()]
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise CheckpointError(f"{folder / 'adapter_config.json'}: r should be a whole number of at least 1, got {rank!r:.80}")
    for pattern in patterns:
        try:
            re.compile(pattern)
            if len(pattern) > 1000 or len(re.findall(r"[*+{?(]", pattern)) > 3 or re.search(r"\)[*+{?]", pattern):
                raise CheckpointError(f"{folder / 'adapter_config.json'}: alpha_pattern {pattern!r:.80} could take for ever to compare: expected at "
                                      "most three repeats (*, +, ?, {) and groups in it together, no repeat of a group, and at most 1,000 characters")
        except re.error as error:
            raise CheckpointError(f"{folder / 'adapter_config.json'}: alpha_pattern {pattern!r:.80} is no regular expression: {error}") from None
    for alpha in alphas:
        if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha < math.inf:
            raise CheckpointError(f"{folder / 'adapter_config.json'}: lora_alpha and alpha_pattern should be numbers above 0, got {alpha!r:.80}")


def scale_of(config, path, rank):
    """How many times the product of one pair counts. A pattern is the end of a path, or a regular expression of it, as in peft."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", path)), config["lora_alpha"])
    return alpha / (rank ** 0.5 if config.get("use_rslora") else rank)


def stacked(pieces, *, rows):
    """[(first, last, A (r,in), B (last-first,r)), ...] -> one pair A (R,in), B (rows,R): of the same A when all have it, else as blocks."""
    same = all(torch.equal(A, pieces[0][2]) for _, _, A, _ in pieces)
    whole = pieces[0][2] if same else torch.cat([A for _, _, A, _ in pieces])
    B, column = torch.zeros(rows, len(whole)), 0
    for first, last, A, part in pieces:
        B[first:last, column:column + len(A)] = part
        column += 0 if same else len(A)
    return whole, B
