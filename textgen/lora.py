"""LoRA: a language model learns by small matrices beside its own, which stay as they are (Hu et al. 2021); by the `peft` library.

    lora = LoRA(CausalLM.from_pretrained("novelist"), rank=8)
    fit(lora.lm, loss, data, config, run=Run(folder, export=lora.export))        # only the adapter is trained
    lora.save_pretrained("my-adapter")                                           # peft opens it on the exported model
    lora = LoRA.from_pretrained(CausalLM.from_pretrained("novelist"), "my-adapter")
    lora.merged().save_pretrained("my-model")

Query, key and value are one matrix here and three in most layouts: a row of the product B A belongs to one of them, so B is cut by
rows and A is the same for all three; three adapters that come from elsewhere stand in one as blocks, with their ranks summed."""
from pathlib import Path

import torch
from torch import nn

from gencore.check import CheckpointError, InputError
from gencore.checkpoint import load_tensors, read_json, save_folder
from gencore.families import expect_fields
from textgen.families import family
from textgen.model import CausalLM

TARGETS = ("qkv", "out", "gate_up", "up", "down")         # every matrix inside the blocks
BASE = "base.json"                                        # which weights the adapter was made for: peft has no place for their digest
PREFIX = "base_model.model."
KNOWN = {"peft_type": ("LORA",), "bias": ("none",), "use_dora": (False, None), "lora_bias": (False, None), "modules_to_save": (None, []),
         "trainable_token_indices": (None,)}             # what an adapter_config.json may say of these


class LoRA:
    """`lm` is a copy of the model with the adapter in it: it generates, and in training nothing but the adapter moves."""

    def __init__(self, lm, *, rank=8, alpha=16, dropout=0.0, targets=TARGETS):
        """rank: of the small matrices. alpha: the adapter counts alpha / rank times. targets: which matrices of a block."""
        if not isinstance(rank, int) or rank < 1:
            raise InputError(f"rank should be a whole number of at least 1, got {rank!r}")
        if not targets or not set(targets) <= set(TARGETS):
            raise InputError(f"targets should be some of {', '.join(TARGETS)}, got {targets!r}")
        self._adapt(lm, {name: rank for name in linears(lm) if name.rpartition(".")[2] in targets}, alpha / rank, dropout=dropout)

    def _adapt(self, lm, ranks, scale, *, dropout=0.0):
        """ranks: {name of a matrix here: rank}; scale: how many times B A counts."""
        from peft import LoraConfig, inject_adapter_in_model
        self.base, self.ranks, self.scale = {"name": lm.name, "digest": lm.digest and lm.digest[:16]}, ranks, scale      # weights alone
        self.parts = parts(lm, ranks)
        config = LoraConfig(r=1, lora_dropout=dropout, target_modules=list(ranks), rank_pattern=dict(ranks),
                            alpha_pattern={name: scale * rank for name, rank in ranks.items()})
        self.lm = inject_adapter_in_model(config, lm.trainable())

    def matrices(self):
        """{name of a matrix here: (A (r,in), B (out,r))}, the parameters themselves."""
        modules = dict(self.lm.named_modules())
        return {name: (modules[name].lora_A["default"].weight, modules[name].lora_B["default"].weight) for name in self.ranks}

    @torch.no_grad()
    def merged(self):
        """-> a CausalLM whose own weights are W + scale * B A; this one stays as it is."""
        state = {name.replace(".base_layer.", "."): tensor for name, tensor in self.lm.state_dict().items() if ".lora_" not in name}
        for name, (A, B) in self.matrices().items():
            state[f"{name}.weight"] = state[f"{name}.weight"] + self.scale * B @ A
        lm = CausalLM(self.lm.cfg, self.lm.tokenizer)
        lm.load_state_dict(state)
        return lm.eval()

    # ---- folders ----

    def files(self):
        """Files of a peft adapter, for save_folder."""
        tensors, ranks, matrices = {}, {}, self.matrices()
        for theirs, ours, (first, last), _ in self.parts:
            A, B = matrices[ours.removesuffix(".weight")]
            path = theirs.removesuffix(".weight")
            tensors[f"{PREFIX}{path}.lora_A.weight"], tensors[f"{PREFIX}{path}.lora_B.weight"] = A.detach(), B.detach()[first:last]
            ranks[path] = len(A)
        rank = max(ranks.values())
        others = {path: r for path, r in ranks.items() if r != rank}
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": self.base["name"], "r": rank,
                  "lora_alpha": self.scale * rank, "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
                  "fan_in_fan_out": any(turned for *_, turned in self.parts),
                  "target_modules": sorted({".".join(path.split(".")[-2:]) for path in ranks}),
                  "rank_pattern": others, "alpha_pattern": {path: self.scale * r for path, r in others.items()}}
        return {"adapter_config.json": config, "adapter_model.safetensors": tensors, BASE: self.base}

    def export(self, model):
        """As `files`, for the export of gencore.train.Run."""
        return self.files()

    def save_pretrained(self, folder):
        """Writes a folder that peft's PeftModel.from_pretrained opens on the exported model."""
        save_folder(folder, self.files())

    @classmethod
    def from_pretrained(cls, lm, folder):
        """The model that an adapter was made for, and the adapter's folder, from here or from peft -> LoRA; another base is refused."""
        folder = Path(folder)
        config = read_json(folder / "adapter_config.json")
        expect_fields(config, KNOWN, "LoRA")
        check_base(lm, folder)
        scale, pieces = read_pieces(lm, folder, config)
        made = {name: stacked(its, rows=linears(lm)[name][0]) for name, its in pieces.items()}
        lora = cls.__new__(cls)
        lora._adapt(lm, {name: len(A) for name, (A, _) in made.items()}, scale)
        with torch.no_grad():
            for name, (A, B) in lora.matrices().items():
                A.copy_(made[name][0])
                B.copy_(made[name][1])
        lora.lm.eval()
        return lora


def linears(lm):
    """{name: shape of its matrix} of the linear layers inside a model's blocks."""
    return {f"transformer.blocks.{name}": tuple(module.weight.shape) for name, module in lm.transformer.blocks.named_modules()
            if isinstance(module, nn.Linear)}


def parts(lm, names):
    """What these matrices are in the layout that the model is exported to: as Family.parts."""
    shapes = linears(lm)
    return family(lm.cfg.family, "CausalLM").parts(lm.cfg, {f"{name}.weight": shapes[name] for name in names})


def check_base(lm, folder):
    """CheckpointError when the adapter says which weights it was made for and these are others."""
    made_for = read_json(folder / BASE) if (folder / BASE).is_file() else {}
    if None not in (lm.digest, made_for.get("digest")) and lm.digest[:16] != made_for["digest"]:
        raise CheckpointError(f"{folder} is an adapter for {made_for.get('name')} (weights {made_for['digest']}), this model is {lm.name} "
                              f"(weights {lm.digest[:16]}): load the model that it was made for")


def read_pieces(lm, folder, config):
    """Adapter folder -> (scale, {name of a matrix here: [(first row, last row, A, B scaled to that scale), ...]})."""
    tensors = load_tensors(folder / "adapter_model.safetensors")
    known = {theirs.removesuffix(".weight"): (ours.removesuffix(".weight"), rows) for theirs, ours, rows, _ in parts(lm, linears(lm))}
    scale, pieces = scale_of(config, "", config["r"]), {}
    for path in sorted({name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in tensors}):
        if path not in known:
            raise CheckpointError(f'{folder} is an adapter for another base: it changes "{path}", which this model has not inside its blocks')
        name, (first, last) = known[path]
        A, B = (tensors.get(f"{PREFIX}{path}.lora_{letter}.weight") for letter in "AB")
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1]:
            raise CheckpointError(f'{folder}: "{path}" should have lora_A (r, in) and lora_B (out, r)')
        there, here = (len(B), A.shape[1]), (last - first, linears(lm)[name][1])
        if there != here:
            raise CheckpointError(f'{folder} is an adapter for another base: "{path}" has the shape {there} there and {here} in this model')
        pieces.setdefault(name, []).append((first, last, A.float(), B.float() * (scale_of(config, path, len(A)) / scale)))
    return scale, pieces


def scale_of(config, path, rank):
    """How many times the product of one pair counts."""
    alpha = (config.get("alpha_pattern") or {}).get(path, config["lora_alpha"])
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
