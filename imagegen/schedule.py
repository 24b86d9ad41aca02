"""Noise schedules: how much noise there is at each step, what a network says there, and the same as diffusers' scheduler_config.json, both ways.

Three paths (gencore/diffusion.py): the discrete chain of Ho et al. 2020 ("vp"), flow matching ("flow"), Karras et al. 2022 ("ve")."""
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from gencore.check import ConfigError, InputError, whole
from gencore.config import Positive, Share, Size, check_fields, from_dict
from gencore.diffusion import (
    FLOW,
    VE,
    VP,
    check_steps,
    cosine_betas,
    flow_euler_levels,
    flow_levels,
    karras_levels,
    linear_betas,
    scaled_linear_betas,
    vp_levels,
)
from gencore.families import expect_fields

SAYS = {"vp": ("noise", "data", "v"), "flow": ("velocity", "data"), "ve": ("edm",)}
SAVED = {"vp": ("ddpm", "ddim", "dpm_solver"), "flow": ("dpm_solver", "euler"), "ve": ("euler",)}       # samplers that a folder can name
SAMPLERS = ("ddpm", "ddim", "dpm_solver", "euler", "heun", "euler_ancestral")


@dataclass(frozen=True)
class Schedule:
    """What training and drawing have to agree on, and how pictures are drawn unless one says otherwise."""
    path: Literal["vp", "flow", "ve"] = "vp"
    predicts: Literal["noise", "data", "v", "velocity", "edm"] = "noise"      # what the network says; "edm" within EDM's preconditioning
    sampler: Literal["ddpm", "ddim", "dpm_solver", "euler"] = "ddim"          # used where no other is asked for
    variance: Literal["small", "large", "learned"] | None = None              # of "ddpm"; None: what the network says, "small" where it says none
    clip: Positive | None = None            # "ddpm", "ddim": data is kept between -clip and clip; 1.0 for models of pixels
    betas: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"              # the rest of these: "vp"
    count: Size = 1000                      # steps in training; the network is told 0..count-1
    low: Share = 1e-4                       # first beta
    high: Share = 0.02                      # last beta
    spacing: Literal["leading", "trailing", "linspace"] = "leading"           # which of the steps are taken where fewer are
    offset: Literal[0, 1] = 0               # added to each of them
    to_data: bool = True                    # "ddim": the last step goes to the data, else to the least noise of training
    shift: Positive = 1.0                   # "flow": above 1, more steps at much noise
    deviation: Positive = 0.5               # "ve": of the data

    def __post_init__(self):
        check_fields(self)
        if self.predicts not in SAYS[self.path]:
            raise ConfigError(f'schedule: predicts should be {" or ".join(SAYS[self.path])} on the path "{self.path}", got {self.predicts!r}')
        if self.sampler not in SAVED[self.path]:
            raise ConfigError(f'schedule: sampler should be {" or ".join(SAVED[self.path])} on the path "{self.path}", got {self.sampler!r}')
        if self.path == "flow" and self.count != 1000:
            raise ConfigError(f'schedule: count should be 1000 on the path "flow", got {self.count}')
        if not 10 <= self.count <= 10_000 or not 0 < self.low <= self.high < 1 or not 0.01 <= self.shift <= 100:
            raise ConfigError("schedule: count should be between 10 and 10,000, 0 < low <= high < 1, and shift between 0.01 and 100, "
                              f"got {self.count}, {self.low}, {self.high} and {self.shift}")

    @property
    def mixture(self):
        """The path as gencore has it."""
        return {"vp": VP, "flow": FLOW, "ve": VE}[self.path]

    @property
    def table(self):
        """Levels (count,) of the steps in training, rising; the path "vp" alone has such steps."""
        betas = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}.get(self.betas)
        return vp_levels(cosine_betas(self.count) if betas is None else betas(self.count, self.low, self.high))

    def levels(self, steps, sampler=None):
        """steps -> (levels (S+1,) falling, what the network is told at them (S,)), those of diffusers' scheduler of the same name.

        "ddim" goes from each to the next; diffusers' to count // steps below, which is another where "linspace" or "trailing" steps are uneven.
        A last step that goes nowhere is left out; with `clip`, diffusers' still brings the data between the bounds there."""
        sampler = sampler or self.sampler
        check_steps(steps)
        if self.path == "flow":
            levels, times = (flow_levels if sampler == "dpm_solver" else flow_euler_levels)(steps, self.shift)
            return levels, times.float()
        if self.path == "ve":
            levels = karras_levels(steps)
            return levels, levels[:-1].log() / 4
        beyond = self.offset if self.spacing == "leading" else 0           # with the offset the last of all steps would be one too far
        whole("steps", steps, 1, self.count - (sampler == "dpm_solver" and self.spacing != "trailing") - beyond)
        taken = self._taken(steps, sampler)
        end = torch.zeros(1) if self.to_data or sampler != "ddim" else self.table[:1]
        levels = torch.cat((self.table[taken], end))
        if levels[-1] == levels[-2]:                                      # a step that goes nowhere
            levels, taken = levels[:-1], taken[:-1]
        return levels, taken.float()

    def _taken(self, steps, sampler):
        """Which of the steps in training, falling; DPM-Solver counts one more and leaves it out."""
        more = int(sampler == "dpm_solver")
        if self.spacing == "linspace":
            taken = np.linspace(0, self.count - 1, steps + more).round()[::-1]
        elif self.spacing == "leading":
            taken = (np.arange(steps + more) * (self.count // (steps + more)))[::-1] + self.offset
        else:
            taken = np.arange(self.count, 0, -self.count / steps).round() - 1                              # of 61 steps of 1000: one too many, -1
        return torch.from_numpy(taken[:steps].astype(np.int64))

    def check_sampler(self, sampler):
        """InputError for what can't walk this path; "euler" and its kin walk "vp" as well."""
        if sampler not in SAMPLERS or (sampler == "euler_ancestral" and self.path == "flow") or (sampler == "ddpm" and self.path == "ve"):
            fitting = [name for name in SAMPLERS if (name, self.path) not in (("euler_ancestral", "flow"), ("ddpm", "ve"))]
            raise InputError(f"sampler should be {', '.join(fitting)} or a scheduler of diffusers, got {sampler!r:.80}")


# ---- diffusers' scheduler_config.json ----

NAMES = {("vp", "ddpm"): "DDPMScheduler", ("vp", "ddim"): "DDIMScheduler", ("vp", "dpm_solver"): "DPMSolverMultistepScheduler",
         ("flow", "dpm_solver"): "DPMSolverMultistepScheduler", ("flow", "euler"): "FlowMatchEulerDiscreteScheduler",
         ("ve", "euler"): "EDMEulerScheduler"}
PREDICTIONS = {"noise": "epsilon", "data": "sample", "v": "v_prediction", "velocity": "flow_prediction"}
VARIANCES = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}
FIELDS = (("num_train_timesteps", "count"), ("beta_start", "low"), ("beta_end", "high"), ("beta_schedule", "betas"),
          ("timestep_spacing", "spacing"), ("steps_offset", "offset"))
CHAIN = {"trained_betas": (None,), "thresholding": (False,), "rescale_betas_zero_snr": (False,)}
SOLVER = {"algorithm_type": ("dpmsolver++",), "solver_order": (2,), "solver_type": ("midpoint",), "lower_order_final": (True,),
          "euler_at_final": (False,), "final_sigmas_type": ("zero",), "thresholding": (False,), "trained_betas": (None,),
          "use_karras_sigmas": (False, None), "use_exponential_sigmas": (False, None), "use_beta_sigmas": (False, None),
          "use_lu_lambdas": (False, None), "variance_type": (None,), "use_dynamic_shifting": (False,), "rescale_betas_zero_snr": (False,)}
UNCLIPPED = {"lambda_min_clipped": (None, -math.inf)}          # read, never written: JSON has no word for its default
FLOW_EULER = {"num_train_timesteps": (1000,), "use_dynamic_shifting": (False,), "invert_sigmas": (False,), "shift_terminal": (None,),
              "use_karras_sigmas": (False, None), "use_exponential_sigmas": (False, None), "use_beta_sigmas": (False, None),
              "stochastic_sampling": (False,)}
EDM = {"sigma_min": (0.002,), "sigma_max": (80.0, 80), "sigma_schedule": ("karras",), "rho": (7.0, 7), "prediction_type": ("epsilon",),
       "final_sigmas_type": ("zero",)}


def to_scheduler(schedule):
    """Schedule -> scheduler_config.json."""
    name = NAMES[schedule.path, schedule.sampler]
    config = {"_class_name": name}
    if schedule.path == "ve":
        return config | {field: values[0] for field, values in EDM.items()} | {"sigma_data": schedule.deviation}
    if schedule.sampler == "euler":
        if schedule.predicts != "velocity":
            raise ConfigError('schedule: sampler "euler" is saved for what predicts velocity alone: choose "dpm_solver"')
        return config | {field: values[0] for field, values in FLOW_EULER.items()} | {"shift": schedule.shift}
    config |= {theirs: getattr(schedule, ours) for theirs, ours in FIELDS} | {"prediction_type": PREDICTIONS[schedule.predicts]}
    if schedule.sampler == "dpm_solver":
        config |= {field: values[0] for field, values in SOLVER.items()}
        return config | ({"use_flow_sigmas": True, "flow_shift": schedule.shift} if schedule.path == "flow" else {"use_flow_sigmas": False})
    config |= {field: values[0] for field, values in CHAIN.items()}
    config |= {"clip_sample": schedule.clip is not None, "clip_sample_range": schedule.clip or 1.0}
    own = {"variance_type": VARIANCES[schedule.variance or "small"]} if schedule.sampler == "ddpm" else {"set_alpha_to_one": schedule.to_data}
    return config | own


def to_schedule(config):
    """scheduler_config.json -> Schedule, or ConfigError naming the field."""
    name = config.get("_class_name")
    if name == "EDMEulerScheduler":
        expect_fields(config, EDM, name)
        return from_dict(Schedule, {"path": "ve", "predicts": "edm", "sampler": "euler", "deviation": config.get("sigma_data", 0.5)})
    if name == "FlowMatchEulerDiscreteScheduler":
        expect_fields(config, FLOW_EULER, name)
        return from_dict(Schedule, {"path": "flow", "predicts": "velocity", "sampler": "euler", "shift": config.get("shift", 1.0)})
    known = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim", "DPMSolverMultistepScheduler": "dpm_solver"}
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"_class_name should be one of {', '.join(sorted(set(NAMES.values())))}, got {name!r:.80}: "
                          "any other scheduler of diffusers can be given as sampler=")
    sampler = known[name]
    expect_fields(config, SOLVER | UNCLIPPED if sampler == "dpm_solver" else CHAIN, name)
    defaults = {"beta_schedule": "linear", "timestep_spacing": "linspace" if sampler == "dpm_solver" else "leading"}
    fields = {ours: (defaults | config)[theirs] for theirs, ours in FIELDS if theirs in defaults | config} | {"sampler": sampler}
    fields["predicts"] = one_of(config, "prediction_type", {theirs: ours for ours, theirs in PREDICTIONS.items()}, "epsilon")
    if sampler == "dpm_solver":
        expect_fields(config, {"use_flow_sigmas": (False, True, None)}, name)
        flow = {"path": "flow", "shift": config.get("flow_shift", 1.0)} if config.get("use_flow_sigmas") else {}
        return from_dict(Schedule, fields | flow)
    expect_fields(config, {"clip_sample": (False, True)}, name)
    fields["clip"] = config.get("clip_sample_range", 1.0) if config.get("clip_sample", True) else None
    if sampler == "ddim":
        return from_dict(Schedule, fields | {"to_data": config.get("set_alpha_to_one", True)})
    variances = {theirs: ours for ours, theirs in VARIANCES.items()} | {"fixed_small_log": "small"}
    return from_dict(Schedule, fields | {"variance": one_of(config, "variance_type", variances, "fixed_small")})


def one_of(config, field, known, default):
    """config[field] in our words, or ConfigError."""
    said = config.get(field, default)
    if not isinstance(said, str) or said not in known:
        raise ConfigError(f"{field} should be one of {', '.join(known)}, got {said!r:.80}")
    return known[said]
