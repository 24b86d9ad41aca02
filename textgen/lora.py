"""LoRA: a language model learns by small matrices beside its own, which stay as they are (Hu et al. 2021); by the `peft` library.

    lora = LoRA(CausalLM.from_pretrained("novelist"), rank=8)
    fit(lora.lm, loss, data, config, run=Run(folder, export=lora.export))        # only the adapter is trained
    lora.save_pretrained("my-adapter")                                           # peft opens it on the exported model
    lora = LoRA.from_pretrained(CausalLM.from_pretrained("novelist"), "my-adapter")
    lora.merged().save_pretrained("my-model")"""
from gencore.check import in_range
from gencore.checkpoint import save_folder
from gencore.lora import Adapter, base_of, ranks_of, read_adapter
from textgen.families import family
from textgen.model import CausalLM

TARGETS = ("qkv", "out", "gate_up", "up", "down")         # every matrix inside the blocks


class LoRA:
    """`lm` is a copy of the model with the adapter in it: it generates, and in training nothing but the adapter moves."""

    def __init__(self, lm, *, rank=8, alpha=16, dropout=0.0, targets=TARGETS):
        """rank: of the small matrices. alpha: the adapter counts alpha / rank times. targets: which matrices of a block."""
        ranks, alpha = ranks_of(lm, targets, rank, TARGETS), in_range("alpha", alpha, 1e-3, 1e6)
        self.adapter = Adapter(lm.trainable(), layout(lm), ranks, scale=alpha / rank, base=base_of(lm),
                               dropout=in_range("dropout", dropout, 0, 1))

    @property
    def lm(self):
        """The model with the adapter in it."""
        return self.adapter.network

    def merged(self):
        """-> a CausalLM whose own weights are W + scale * B A; this one stays as it is."""
        lm = CausalLM(self.lm.cfg, self.lm.tokenizer)
        lm.load_state_dict(self.adapter.merged_state())
        return lm.eval()

    def export(self, model):
        """Files of a peft adapter: the export of gencore.train.Run."""
        return self.adapter.files("CAUSAL_LM")

    def save_pretrained(self, folder):
        """Writes a folder that peft's PeftModel.from_pretrained opens on the exported model."""
        save_folder(folder, self.adapter.files("CAUSAL_LM"))

    @classmethod
    def from_pretrained(cls, lm, folder):
        """The model that an adapter was made for, and the adapter's folder, from here or from peft -> LoRA; another base is refused."""
        lora = cls.__new__(cls)
        lora.adapter = read_adapter(lm.trainable(), layout(lm), folder, base_of(lm))
        lora.lm.eval()
        return lora


def layout(lm):
    """The Family that a model is exported to."""
    return family(lm.cfg.family, "CausalLM")
