"""Any scheduler of diffusers in the place of our samplers."""
import inspect
import json
import math
from contextlib import contextmanager

from gencore.check import InputError, whole
from imagegen.schedule import PREDICTIONS, VARIANCES, to_scheduler

BETAS = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")           # what makes the levels of the path "vp"


class Scheduler:
    """A scheduler of diffusers by class and configuration; every way has one of its own."""

    def __init__(self, kind, config):
        self.kind, self.config = kind, {"_class_name": kind.__name__, **config}

    def way(self, says, noise, steps, generators):
        """says(x, t) -> (prediction, variance or None); noise (B,...) -> yields the way to the sample."""
        with taking(self.kind, f"its configuration with {steps} steps"):
            scheduler = self.kind.from_config(self.config)
            scheduler.set_timesteps(steps)
        noisy = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        learned, x = self.config.get("variance_type") in ("learned", "learned_range"), noise * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps:
            said = says(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
            with taking(self.kind, "what this model says"):
                x = scheduler.step(_joined(*said) if learned else said[0], t, x, **noisy).prev_sample
            yield x


@contextmanager
def taking(kind, what):
    """One sentence for what a scheduler raises where it does not take something."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, NotImplementedError, LookupError, ImportError) as error:
        raise InputError(f"diffusers' {kind.__name__} does not take {what}: {error}") from error


def _joined(predicted, variance):
    import torch
    return predicted if variance is None else torch.cat((predicted, variance), 1)


def scheduler_of(given, schedule, *, learned=False):
    """A scheduler of diffusers, its class (made from the schedule) or its configuration with _class_name -> Scheduler, or InputError.

    learned: the network says a variance."""
    import diffusers
    if isinstance(given, dict) and "_class_name" not in given:
        raise InputError("sampler as a configuration should name its class: add \"_class_name\", or give the scheduler itself")
    named = getattr(diffusers, str(given.get("_class_name")), None) if isinstance(given, dict) else given if isinstance(given, type) else type(given)
    if isinstance(named, type) and (needed := getattr(named, "_backends", None)) and not issubclass(named, diffusers.SchedulerMixin):
        raise InputError(f"diffusers' {named.__name__} needs {' and '.join(needed)}: install what is missing, or choose another sampler")
    if not (isinstance(named, type) and issubclass(named, diffusers.SchedulerMixin)):
        raise InputError(f"sampler should be a name, or a scheduler of diffusers or its class, got {given!r:.80}")
    if isinstance(given, type):
        with taking(named, "what this model's schedule says"):
            given = named.from_config(fitting(named, schedule, learned))
    config, known = dict(given if isinstance(given, dict) else given.config), inspect.signature(named.__init__).parameters
    config = {field: json.loads(json.dumps(value, default=lambda array: array.tolist())) for field, value in config.items()
              if field in known and not (isinstance(value, float) and value == -math.inf)}     # lambda_min_clipped's default, no word of JSON's
    defaults = {field: parameter.default for field, parameter in known.items() if parameter.default is not parameter.empty}
    check_fits(named.__name__, defaults | config, schedule)
    return Scheduler(named, config)


def fitting(kind, schedule, learned):
    """The configuration by which a scheduler of that class walks as the schedule says, whatever the schedule's own sampler is."""
    config = to_scheduler(schedule)
    if schedule.path == "flow":
        return config | {"shift": schedule.shift, "flow_shift": schedule.shift, "use_flow_sigmas": True,
                         "prediction_type": PREDICTIONS[schedule.predicts]}
    if schedule.path == "vp":
        clips = schedule.clip is not None and kind.__name__.startswith(("DDPM", "DDIM"))          # as ours of these names do, and no others
        config |= {"clip_sample": clips, "clip_sample_range": schedule.clip or 1.0, "set_alpha_to_one": schedule.to_data}
        if kind.__name__ == "DDPMScheduler":
            config |= {"variance_type": VARIANCES[schedule.variance or ("learned" if learned else "small")]}
    return config


def check_fits(name, config, schedule):
    """InputError for a scheduler that walks another path than the model has learnt, or takes what it says for something else."""
    path = "ve" if "sigma_data" in config else "flow" if "FlowMatch" in name or config.get("use_flow_sigmas") else \
        "vp" if "beta_schedule" in config else None
    if "Inverse" in name:
        raise InputError(f"diffusers' {name} goes from a picture to noise: choose one that draws")
    if path is None:
        raise InputError(f"diffusers' {name} names neither betas nor a flow nor EDM's deviation: there is no telling whether it fits this model")
    if path != schedule.path:
        raise InputError(f'this model goes the path "{schedule.path}", {name} goes "{path}": give another scheduler, or its class')
    wanted = PREDICTIONS.get(schedule.predicts, "epsilon")                                 # EDM's preconditioning is called so there
    said = config.get("prediction_type", "flow_prediction" if path == "flow" else "epsilon")
    if said != wanted:
        raise InputError(f'this model predicts "{wanted}", the scheduler expects {said!r}: give its class, {name}, and it is made to fit')
    if path == "vp" and config.get("trained_betas") is None:
        theirs, ours = ({field: values.get(field) for field in BETAS} for values in (config, to_scheduler(schedule)))
        if theirs != ours:
            raise InputError(f"this model has learnt the noise of {ours}, the scheduler walks {theirs}: give its class, {name}, made to fit")
    whole("num_train_timesteps", config.get("num_train_timesteps", 1000), 1, 10_000)       # of a recipe, which is a stranger's
