"""Settings of a training, checked; what a resumed run may change of them."""
from dataclasses import dataclass

from gencore.check import ConfigError
from gencore.config import check_fields

FREE_TO_CHANGE = ("threads", "save_every", "eval_every")     # fields that may differ when a run is resumed


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000               # optimizer steps
    batch: int = 32                 # rows of one step, over all processes
    accumulate: int = 1             # micro-batches in a step; divides the rows of a process
    lr: float = 1e-3                # peak rate of AdamW
    muon_lr: float | None = None    # peak rate of Muon on the matrices inside blocks; None = AdamW for all
    warmup: int = 100               # steps of linear rise
    decay: float = 0.3              # last share of the steps, over which the rate falls linearly to 0
    weight_decay: float = 0.1       # decoupled; not on norms and biases
    clip: float | None = 1.0        # largest gradient norm; None = no clipping
    ema: float | None = None        # decay of the running average that is exported; None = the weights themselves
    precision: str = "float32"      # "float32"; "bf16": autocast over float32 weights; "auto": bf16 where the processor is faster by it
    eval_every: int = 0             # steps between evaluations and samples; 0 = only at the end
    save_every: int = 500           # steps between checkpoints; 0 = only at the end
    seed: int = 0                   # of dropout, noise and everything else that fit draws
    threads: int | None = None      # CPU threads; None = as torch has it

    def __post_init__(self):
        check_fields(self)
        check_config(self)


def check_same_config(saved, now, run):
    """A resumed run goes on under the settings it began with."""
    free = FREE_TO_CHANGE + (("steps",) if run.extend else ())
    differs = [f"{name} was {saved.get(name)!r}, is {value!r}" for name, value in now.items()
               if saved.get(name) != value and name not in free]
    if differs:
        raise ConfigError(f"{run.folder} was begun with other settings ({'; '.join(differs)}): use those, or start in another folder")


def check_config(config):
    """Ranges that a dataclass can't express."""
    for name in ("steps", "batch", "accumulate", "threads"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ConfigError(f"{name} should be at least 1, got {getattr(config, name)}")
    if config.precision not in ("float32", "bf16", "auto"):
        raise ConfigError(f'precision should be "float32", "bf16" or "auto", got "{config.precision}"')
    for name in ("seed", "warmup", "eval_every", "save_every", "weight_decay"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} should be 0 or more, got {getattr(config, name)}")
    if config.seed >= 2 ** 63:
        raise ConfigError(f"seed should be below 2**63, got {config.seed}")
    if not 0 <= config.decay <= 1:
        raise ConfigError(f"decay is the share of steps over which the rate falls: expected 0 to 1, got {config.decay}")
    if config.lr <= 0 or (config.muon_lr is not None and config.muon_lr <= 0):
        raise ConfigError(f"lr and muon_lr should be above 0, got {config.lr} and {config.muon_lr}")
    if config.clip is not None and config.clip <= 0:
        raise ConfigError(f"clip is the largest norm of a gradient: expected above 0, or None for no clipping, got {config.clip}")
    if config.ema is not None and not 0 < config.ema < 1:
        raise ConfigError(f"ema should lie between 0 and 1, got {config.ema}")
