"""diffusers' own model and scheduler tests on what is exported here: its mixins, from a checkout of its repository, against the installed diffusers.

    pip install parameterized requests-mock torchsde
    python -m benchmarks.diffusers_mixins --data FOLDER          a checkout (git clone https://github.com/huggingface/diffusers FOLDER)

Each of its test classes for a layout that is written here is run on a folder with our weights: its tiny configuration becomes ours, a model is
made from it, exported, and stands in the place of the one that the class would make. The schedulers' tests get the scheduler_config.json that is
written here. Nothing of the checkout is kept. What a CPU without a network can't do is skipped by the tests themselves. Writes
benchmarks/results/diffusers_mixins.json."""
import argparse
import copy
import functools
import hashlib
import json
import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import torch

from gencore.check import ConfigError, DataError, command
from gencore.checkpoint import load_tensors, save_folder
from gencore.recipe import versions
from imagegen.autoencoder import Autoencoder
from imagegen.class_dit import ClassDiT
from imagegen.dit import DiT
from imagegen.families.autoencoder_kl import AUTOENCODER_KL
from imagegen.families.autoencoder_tiny import AUTOENCODER_TINY
from imagegen.families.dit import DIT
from imagegen.families.pixart import PIXART
from imagegen.families.sd3 import SD3
from imagegen.families.unet import UNET, UNET_CONDITION
from imagegen.families.vq_model import VQ_MODEL
from imagegen.joint_dit import JointDiT
from imagegen.schedule import Schedule, to_scheduler
from imagegen.tiny_autoencoder import TinyAutoencoder
from imagegen.unet import UNet
from imagegen.vq_autoencoder import VQAutoencoder

RESULTS = Path(__file__).parent / "results" / "diffusers_mixins.json"
LAYOUTS = {             # file of tests: (family, our model, what of the configuration there is another one here: a structure that we do not have)
    "transformers/test_models_dit_transformer2d.py": (DIT, ClassDiT, {}),
    "transformers/test_models_pixart_transformer2d.py": (PIXART, DiT, {"caption_channels": 8, "cross_attention_dim": 4, "num_embeds_ada_norm": 1000}),
    "transformers/test_models_transformer_sd3.py": (SD3, JointDiT, {"dual_attention_layers": ()}),
    "unets/test_models_unet_2d.py": (UNET, UNet, {"attention_head_dim": 4}),
    "unets/test_models_unet_2d_condition.py": (UNET_CONDITION, UNet, {}),
    "autoencoders/test_models_autoencoder_kl.py": (AUTOENCODER_KL, Autoencoder, {}),
    "autoencoders/test_models_autoencoder_tiny.py": (AUTOENCODER_TINY, TinyAutoencoder, {}),
    "autoencoders/test_models_vq.py": (VQ_MODEL, VQAutoencoder, {}),
}
SCHEDULES = {           # file of tests: what is exported
    "test_scheduler_ddpm.py": Schedule(sampler="ddpm", clip=1.0), "test_scheduler_ddim.py": Schedule(sampler="ddim", betas="scaled_linear", offset=1),
    "test_scheduler_dpm_multi.py": Schedule("flow", "velocity", "dpm_solver"),                                   # the painter's
    "test_scheduler_edm_euler.py": Schedule("ve", "edm", "euler")}
NOT_OURS = {            # failures that have their cause there
    "TestAutoencoderTinyTraining::test_gradient_checkpointing_equivalence":
        "EncoderTiny.forward of diffusers 0.42.1 brings pictures to [0, 1] without gradient checkpointing alone: with it the model is another one, "
        "by more than the test allows with 6 of 10 seeds of its own weights",
    "DPMSolverMultistepSchedulerTest::test_compatibles":                       # some runs alone: PYTHONHASHSEED decides
        "it goes by the last of a set's classes; where that is DEIS, diffusers' own default scheduler, once saved and opened, does not come back "
        "either: its algorithm_type deis refuses final sigmas of zero"}
MIXINS = ("ModelTesterMixin", "TrainingTesterMixin", "MemoryTesterMixin", "AttentionTesterMixin", "AutoencoderTesterMixin", "SchedulerCommonTest")


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a checkout of diffusers, of which tests/ is read")
    parser.add_argument("--only", help="layouts and schedulers with this in their names, and nothing is written")
    args = parser.parse_args()
    if not (args.data / "tests" / "models" / "testing_utils").is_dir():
        raise DataError(f"{args.data} should be a checkout of diffusers with tests/models/testing_utils")
    import diffusers  # before the checkout's conftest puts its own src/ on the path
    import pytest
    names = {f"models/{file}": family.name for file, (family, _, _) in LAYOUTS.items()}
    names |= {f"schedulers/{file}": to_scheduler(schedule)["_class_name"] for file, schedule in SCHEDULES.items()}
    files = [str(args.data / "tests" / file) for file, name in names.items() if not args.only or args.only in name]
    with tempfile.TemporaryDirectory() as place:
        exports = Exports(Path(place))
        code = pytest.main([*files, "-q", "--rootdir", str(args.data), "-c", os.devnull, "-p", "no:cacheprovider", "--tb", "line"], plugins=[exports])
    if code not in (0, 1):
        raise DataError(f"pytest could not run the tests of {args.data} (code {int(code)}): what it says stands above")
    for name, row in exports.rows.items():
        print(f"{name:24} passed {row['passed']:3}   skipped {row['skipped']:3}   failed {len(row['failed']):3}   {', '.join(row['failed'])}")
    sums = {"passed": sum(row["passed"] for row in exports.rows.values()), "skipped": sum(row["skipped"] for row in exports.rows.values()),
            "failed": sum(len(row["failed"]) for row in exports.rows.values())}
    print(sums, exports.refused)
    if not args.only:
        results = {"versions": versions() | {"diffusers": diffusers.__version__, "tests": commit_of(args.data)}, "all": sums, "rows": exports.rows,
                   "why skipped": dict(exports.skipped.most_common()),
                   "why failed": {test: NOT_OURS.get(test, "unknown") for row in exports.rows.values() for test in row["failed"]},
                   "classes of structures that are not here": exports.refused}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


class Exports:
    """A plugin of pytest: what the tests of a class make is our exported model, and nothing but what the mixins ask is run."""

    def __init__(self, place):
        self.place, self.family, self.refused, self.skipped = place, {}, {}, Counter()
        self.rows = {}

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if self._asked(item) and self._stands_in(item)]

    def pytest_runtest_logreport(self, report):
        name = self.family[report.nodeid.split("::")[1]]
        row = self.rows.setdefault(name, {"passed": 0, "skipped": 0, "failed": []})
        if report.failed:
            row["failed"].append(report.nodeid.split("::", 1)[1])
        elif report.skipped:
            row["skipped"] += 1
            self.skipped[report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)] += 1
        elif report.when == "call":
            row["passed"] += 1

    def _asked(self, item):
        """Is it a test of a mixin, maybe with another tolerance in the class itself?"""
        if item.cls is None or item.cls.__name__ in MIXINS:
            return False
        return any(base.__name__ in MIXINS and hasattr(base, item.originalname) for base in item.cls.__mro__)

    def _stands_in(self, item):
        """Puts our model in the place of the class's own, once -> False where our layout has no such structure."""
        cls = item.cls
        if item.path.name in SCHEDULES:
            config = {field: value for field, value in to_scheduler(SCHEDULES[item.path.name]).items() if value is not None}
            self.family[cls.__name__] = config.pop("_class_name")
            cls.get_scheduler_config = lambda self, config=config, **changes: config | changes
        elif cls.__name__ not in self.family and cls.__name__ not in self.refused:
            family, Model, changes = LAYOUTS[f"{item.path.parent.name}/{item.path.name}"]
            asked = cls()
            try:
                exported = export(self.place, family, Model, asked.get_init_dict() | changes)
            except ConfigError as error:
                self.refused[cls.__name__] = str(error)
                return False
            config = {field: value for field, value in json.loads((exported / "config.json").read_text()).items() if field != "_class_name"}
            cls.model_class = loading(asked.model_class, functools.partial(export, self.place, family, Model))
            cls.get_init_dict = lambda self, config=config: copy.deepcopy(config)
            self.family[cls.__name__] = family.name
        return cls.__name__ in self.family


def export(place, family, Model, config):
    """A configuration of theirs -> a folder with our model of it, its weights random; made once."""
    cfg = family.to_ours(config)
    folder = place / f"{family.name}-{hashlib.sha256(repr(cfg).encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Model(cfg)
            for module in model.modules():                 # as torch starts them, for which the tests' tolerances are: ours would begin at zero
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        state = model.weights() if hasattr(model, "weights") else model.state_dict()
        save_folder(folder, {"config.json": family.to_theirs(cfg), "diffusion_pytorch_model.safetensors": family.export_state(cfg, state)})
    return folder


def loading(cls, exported):
    """Their class -> one of the same name whose new models have the weights that our export of their configuration has."""
    @functools.wraps(cls.__init__)
    def start(self, *args, **kwargs):
        cls.__init__(self, *args, **kwargs)
        if next(self.parameters()).device.type != "meta":                  # else somebody is about to load others
            self.load_state_dict(load_tensors(exported(dict(self.config))))

    return type(cls.__name__, (cls,), {"__init__": start, "__module__": cls.__module__})


def commit_of(folder):
    """What is known of a checkout."""
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip() or "no git checkout"


if __name__ == "__main__":
    main()
