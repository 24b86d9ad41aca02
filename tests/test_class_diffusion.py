"""Diffusion as users call it, its schedules and its folders; equality with diffusers is in tests/parity/test_pipelines.py."""
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from tiny_diffusion import CLASSES, coder, tiny_dit, tiny_unet

import gencore
from gencore.check import CheckpointError, ConfigError, InputError
from imagegen import Diffusion
from imagegen.diffusion import class_numbers
from imagegen.diffusion_files import check_saved, diffusion_files, is_passing_through, padded, without_padding
from imagegen.labelled import labelled_pictures
from imagegen.schedule import Schedule, to_schedule, to_scheduler
from imagegen.tiny_autoencoder import passes_through
from imagegen.unet import UNet


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A class-conditional model in latents that was saved and opened."""
    folder = tmp_path_factory.mktemp("diffusion") / "m"
    Diffusion(tiny_dit(), coder(), labels=CLASSES).save_pretrained(folder)
    return Diffusion.from_pretrained(folder)


def test_a_picture_is_the_same_alone_and_in_a_list_also_where_noise_is_fresh(saved):
    for sampler in ("ddim", "ddpm", "euler_ancestral"):
        together = saved(["star", "box", 3], steps=5, guidance=2.0, sampler=sampler, seed=5, output_type="pt")
        alone = saved("square", steps=5, guidance=2.0, sampler=sampler, seed=6, output_type="pt")
        torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-5)
        assert (together[0] - together[2]).abs().max() > 1e-2


@pytest.mark.parametrize("sampler", ["ddpm", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"])
def test_a_recipe_makes_it_again(saved, sampler, tmp_path):
    import diffusers
    pictures = saved(["star", "heart"], steps=4, guidance=2.0, guidance_interval=(0.3, 0.8), size=(16, 24), seed=7,
                     sampler=getattr(diffusers, sampler, sampler))
    pictures[1].save(tmp_path / "a.png")
    again = gencore.replay(tmp_path / "a.png")
    assert again.size == (24, 16) and again.tobytes() == pictures[1].tobytes()


def test_what_was_just_saved_has_recipes_unless_it_was_rounded(tmp_path):
    model = Diffusion(tiny_unet())
    assert "recipe" not in model(steps=2, seed=0)[0].info
    model.save_pretrained(tmp_path / "m")
    picture = model(steps=2, seed=0)[0]
    picture.save(tmp_path / "a.png")
    assert gencore.replay(tmp_path / "a.png").tobytes() == picture.tobytes()
    model.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert "recipe" not in model(steps=2, seed=0)[0].info


def test_pictures_need_not_be_square(saved):
    assert saved(0, steps=2, size=(16, 24), seed=0, output_type="np").shape == (1, 16, 24, 3)
    unet = Diffusion(tiny_unet())
    assert unet(2, steps=2, size=(12, 9), seed=0, output_type="pt").shape == (2, 3, 12, 9) and unet(steps=2, seed=0)[0].size == (8, 8)


def test_numbers_of_numpy_are_numbers(saved):
    import numpy as np
    plain, numpy = (saved([one], steps=steps, guidance=guidance, seed=0)[0]
                    for one, steps, guidance in ((1, 2, 2.0), (np.int64(1), np.int64(2), np.float32(2))))
    assert plain.info["recipe"] == numpy.info["recipe"] and plain.tobytes() == numpy.tobytes()


def test_the_noisiest_step_is_in_an_interval_up_to_one():
    torch.manual_seed(0)
    model = Diffusion(tiny_dit(), labels=CLASSES, schedule=Schedule("flow", "velocity", "euler"))
    plain, part, whole = (model(["star"], steps=1, guidance=9.0 if interval else 1.0, guidance_interval=interval or (0, 1), seed=0, output_type="pt")
                          for interval in (None, (0.5, 1.0), (0.0, 1.0)))
    assert torch.equal(part, whole) and not torch.equal(plain, whole)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver", "euler"])
def test_steps_are_as_many_as_asked_whatever_divides_the_thousand(sampler):
    for spacing in ("trailing", "leading", "linspace"):
        schedule = Schedule(spacing=spacing)
        for steps in (61, 103, 206, 998, 999):
            levels, _ = schedule.levels(steps, sampler)
            assert len(levels) == steps + 1 and (levels[1:] < levels[:-1]).all()
    assert len(Schedule(sampler="dpm_solver", spacing="trailing").levels(1000)[0]) == 1001
    with pytest.raises(InputError, match="steps should be a whole number between 1 and 999"):
        Schedule(sampler="dpm_solver").levels(1000)


def test_a_u_net_is_guided_where_it_has_a_class_for_none(tmp_path):
    with_none = Diffusion(tiny_unet(classes=3), labels=("left", "right"))
    made = [with_none(["left"], steps=3, guidance=guidance, seed=0, output_type="pt") for guidance in (1.0, 3.0)]
    assert (made[0] - made[1]).abs().max() > 1e-3
    with_none.save_pretrained(tmp_path / "m")
    torch.testing.assert_close(Diffusion.from_pretrained(tmp_path / "m")(["left"], steps=3, guidance=3.0, seed=0, output_type="pt"), made[1])
    with pytest.raises(InputError, match="guidance should be 1: this model has no class that stands for none"):
        Diffusion(tiny_unet(classes=2), labels=("left", "right"))("left", guidance=2.0)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "UniPCMultistepScheduler"])
def test_an_interval_guides_the_steps_in_it_alone(saved, sampler, monkeypatch):
    import diffusers
    rows, forward = [], saved.denoiser.forward
    monkeypatch.setattr(saved.denoiser, "forward", lambda x, *rest: rows.append(len(x)) or forward(x, *rest))
    draw = partial(saved, ["star"], steps=4, seed=0, sampler=getattr(diffusers, sampler, sampler), output_type="pt", progress=False)
    whole, plain, between = draw(guidance=3.0), draw(guidance=1.0), draw(guidance=3.0, guidance_interval=(0.3, 0.6))
    assert torch.equal(draw(guidance=3.0, guidance_interval=(0.0, 0.0)), plain)
    assert min(float((between - other).abs().max()) for other in (whole, plain)) > 1e-4
    rows.clear()
    draw(guidance=3.0, guidance_interval=(0.3, 0.6))
    assert set(rows) == {1, 2} and rows[0] == rows[-1] == 1                       # the middle alone


def test_guidance_of_none_draws_what_no_class_draws(saved):
    """Scale 0 leans all the way to no class: the same whatever was asked for."""
    a, b = (saved(label, steps=3, guidance=0.0, seed=0, output_type="pt") for label in ("star", "heart"))
    assert torch.equal(a, b)


def test_empty_classes_are_written_for_dit_pipeline_and_left_out_again():
    family, cfg, state = padded(tiny_dit())
    rows, ours = state["labels.table.weight"], tiny_dit().labels.table.weight
    assert cfg.classes == 1000 and rows.shape[0] == 1001
    assert torch.equal(rows[:4], ours[:4]) and torch.equal(rows[1000], ours[4]) and not rows[4:1000].any()
    whole = tiny_dit(classes=1000)
    whole.load_state_dict(state)
    assert torch.equal(without_padding(whole).labels.table.weight, ours)
    assert without_padding(tiny_dit()).cfg == tiny_dit().cfg


@pytest.mark.parametrize("schedule, names", [
    (Schedule("ve", "edm", "euler"), ("DDPMScheduler", "EulerDiscreteScheduler", "PNDMScheduler")),
    (Schedule("flow", "velocity", "dpm_solver"), ("DDIMScheduler", "HeunDiscreteScheduler", "IPNDMScheduler", "EDMEulerScheduler")),
    (Schedule(), ("IPNDMScheduler", "FlowMatchEulerDiscreteScheduler", "KarrasVeScheduler", "RePaintScheduler"))])
def test_schedulers_of_another_path_are_one_sentence_by_class_too(schedule, names):
    import diffusers
    model = Diffusion(tiny_unet(), schedule=schedule)
    for name in names:
        with pytest.raises(InputError, match=f"{name} (goes|names|does not take)"):
            model(1, steps=3, seed=0, sampler=getattr(diffusers, name))


def test_a_scheduler_may_hold_an_array():
    import diffusers
    betas = diffusers.DDIMScheduler().betas.numpy()
    model = Diffusion(tiny_unet())
    by_array, by_class = (model(1, steps=3, seed=0, output_type="pt", sampler=sampler)
                          for sampler in (diffusers.DDIMScheduler(trained_betas=betas, clip_sample=False), diffusers.DDIMScheduler))
    torch.testing.assert_close(by_array, by_class, rtol=0, atol=1e-4)


def test_a_whole_name_comes_before_a_part_of_another_and_numerals_by_their_size(tmp_path):
    assert class_numbers(["crane", "bird"], ("crane", "crane, bird"), 2) == [0, 1]
    for name in ("10", "9", "a", "1"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "x.png")
    assert labelled_pictures(tmp_path, 4, 1).names == ("1", "9", "10", "a")


def test_more_classes_than_dit_pipeline_knows_are_not_saved():
    with pytest.raises(ConfigError, match="DiTPipeline knows 1000 classes, and takes the next for none of them: this model has 1001"):
        check_saved(tiny_dit(classes=1001), Schedule())


def test_a_unet_whose_grids_diffusers_cannot_halve_is_not_saved():
    cfg = tiny_unet().cfg
    with pytest.raises(ConfigError, match="size should be a multiple of .*, got 9"):
        check_saved(UNet(replace(cfg, size=9)), Schedule())


def test_one_step_that_stays_where_it_is_draws(tmp_path):
    model = Diffusion(tiny_unet(), schedule=Schedule(to_data=False))
    assert model(1, steps=1, seed=0, output_type="pt").isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_autoencoder_that_hands_pixels_through(dtype):
    model, pixels = passes_through(3), torch.rand(2, 3, 5, 7) * 2 - 1
    model.load_state_dict({key: tensor.to(dtype).float() for key, tensor in model.state_dict().items()})
    torch.testing.assert_close(model.decode(pixels / model.cfg.scaling), pixels, rtol=0, atol=2e-6)
    torch.testing.assert_close(model.encode(pixels) * model.cfg.scaling, pixels, rtol=0, atol=2e-6)
    assert is_passing_through(model) and not is_passing_through(coder())
    model.decoder.layers[0].weight.mul_(2)
    assert not is_passing_through(model)


SCHEDULES = [Schedule(), Schedule(sampler="ddpm", variance="learned", clip=1.0), Schedule(sampler="ddpm", variance="large", clip=2.0, offset=1),
             Schedule(predicts="v", betas="squaredcos_cap_v2", spacing="trailing", to_data=False), Schedule(sampler="dpm_solver", spacing="linspace"),
             Schedule("flow", "velocity", "dpm_solver", shift=3.0), Schedule("flow", "data", "dpm_solver"), Schedule("flow", "velocity", "euler"),
             Schedule("ve", "edm", "euler", deviation=0.25)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_survives_the_way_there_and_back_and_diffusers_takes_the_same_steps(schedule):
    import diffusers
    config = to_scheduler(schedule)
    assert to_schedule(json.loads(json.dumps(config))) == schedule
    theirs = getattr(diffusers, config["_class_name"]).from_config(config)
    for steps in (1, 3, 7, 50):
        theirs.set_timesteps(steps)
        levels, times = schedule.levels(steps)
        assert len(levels) == len(times) + 1 and bool((levels.diff() < 0).all())
        torch.testing.assert_close(times, theirs.timesteps.float(), rtol=1e-6, atol=0)
        if hasattr(theirs, "sigmas") and schedule.path != "vp":
            torch.testing.assert_close(levels, theirs.sigmas.float(), rtol=1e-5, atol=0)


def test_as_many_steps_as_training_had_less_the_offset():
    assert len(Schedule(offset=1).levels(999)[1]) == 999 and len(Schedule(offset=1, sampler="dpm_solver").levels(998)[1]) == 998
    for sampler, steps in (("ddim", 1000), ("dpm_solver", 999)):
        with pytest.raises(InputError, match=f"steps should be a whole number between 1 and {steps - 1}"):
            Schedule(offset=1, sampler=sampler).levels(steps)


def test_a_class_of_diffusers_walks_as_the_schedule_says_whatever_its_own_sampler_is():
    import diffusers
    solver = Diffusion(tiny_dit(), coder(), labels=CLASSES, schedule=Schedule(sampler="dpm_solver"))
    for name, kind in (("ddim", diffusers.DDIMScheduler), ("ddpm", diffusers.DDPMScheduler)):              # which clip, unless they are told
        ours, theirs = (solver("star", steps=3, seed=0, sampler=sampler, output_type="pt") for sampler in (name, kind))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_defaults_of_diffusers_are_read_as_they_are_meant():
    """A configuration that says next to nothing means what the class there takes for granted."""
    import diffusers
    for name in ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"):
        whole = dict(getattr(diffusers, name)().config)
        assert to_schedule({"_class_name": name}) == to_schedule(whole | {"_class_name": name})


@pytest.mark.parametrize("config, words", [
    ({"_class_name": "PNDMScheduler"}, "any other scheduler of diffusers can be given as sampler="), ({}, "_class_name should be one of"),
    ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding"),
    ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "learned_range"),
    ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, "betas"), ({"_class_name": "DDIMScheduler", "num_train_timesteps": 0}, "count"),
    ({"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1}, "lambda_min_clipped"),
    ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order"), ({"_class_name": "EDMEulerScheduler", "rho": 5}, "rho"),
])
def test_schedules_that_are_not_walked_here_are_named(config, words):
    with pytest.raises(ConfigError, match=words):
        to_schedule(config)


@pytest.mark.parametrize("fields, words", [
    ({"path": "flow"}, "predicts should be velocity or data"), ({"path": "ve", "predicts": "edm"}, "sampler should be euler"),
    ({"low": 0.5, "high": 0.1}, "0 < low <= high"), ({"sampler": "heun"}, "sampler"), ({"clip": 0}, "clip"),
    ({"path": "flow", "predicts": "velocity", "sampler": "euler", "count": 500}, "count should be 1000"),
])
def test_schedules_that_can_not_be_are_named(fields, words):
    with pytest.raises(ConfigError, match=words):
        replace(Schedule(), **fields)


@pytest.mark.parametrize("make, words", [
    (lambda: Diffusion(tiny_dit(), coder(), labels=("a",) * 5), "4 classes, got 5"), (lambda: Diffusion(tiny_unet(), labels=("a",)), "0 classes"),
    (lambda: Diffusion(tiny_unet(), schedule=Schedule(sampler="ddpm", variance="learned")), "the denoiser says none"),
    (lambda: Diffusion(tiny_unet(out_channels=5)), "say 3 channels, or twice as many"),
    (lambda: diffusion_files(tiny_unet(out_channels=6)), 'drawn by "ddpm" alone'),
    (lambda: diffusion_files(tiny_dit(), schedule=Schedule(sampler="ddpm")), "DiTPipeline drops a learned variance"),
    (lambda: diffusion_files(tiny_dit(), schedule=Schedule("flow", "velocity", "euler")), "DiTPipeline can't go by"),
])
def test_parts_that_do_not_fit_are_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("call, words", [
    (lambda model: model("stat"), 'did you mean "star"'), (lambda model: model([]), "labels is empty"),
    (lambda model: model(4), "a number below 4, got 4"),
    (lambda model: model(True), "got True"), (lambda model: model(), "got None"), (lambda model: model("star", steps=0), "steps should be"),
    (lambda model: model("star", guidance=-1), "guidance should be between"),
    (lambda model: model("star", guidance_interval=(0.9, 0.1)), "high should be between 0.9 and 1"),
    (lambda model: Diffusion(model.denoiser, schedule=Schedule("ve", "edm", "euler"))(0, guidance_interval=(0, 0.5)), 'on the path "ve"'),
    (lambda model: model("star", sampler="plms"), "sampler should be ddpm, ddim"),
    (lambda model: model("star", sampler=3), "a scheduler of diffusers or its class, got 3"), (lambda model: model("star", size=10), "multiple of 4"),
    (lambda model: model("star", size=(16, 16, 3)), "a side, or"), (lambda model: model("star", output_type="jpg"), "output_type should be one of"),
    (lambda model: model("star", seed=-1), "seed"), (lambda model: Diffusion(tiny_unet())("star"), "how many pictures.*got 'star'"),
])
def test_wrong_calls_are_named(saved, call, words):
    with pytest.raises(InputError, match=words):
        call(saved)


def test_a_scheduler_made_for_another_prediction_is_named(saved):
    from diffusers import DDIMScheduler
    with pytest.raises(InputError, match='this model predicts "epsilon", the scheduler expects .v_prediction.: give its class, DDIMScheduler'):
        saved("star", sampler=DDIMScheduler(prediction_type="v_prediction"))


def test_what_diffusers_refuses_is_said(saved):
    with pytest.raises(InputError, match="diffusers' DDIMScheduler does not take its configuration with 2 steps: nope"):
        saved("star", steps=2, sampler={"_class_name": "DDIMScheduler", "timestep_spacing": "nope"})


def test_a_scheduler_of_other_noise_is_refused_and_its_class_fits(saved):
    import diffusers
    for made in (diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"), diffusers.DDIMScheduler(num_train_timesteps=200),
                 {"_class_name": "HeunDiscreteScheduler"}):
        with pytest.raises(InputError, match="this model has learnt the noise of .*, made to fit"):
            saved("star", sampler=made)
    saved("star", sampler=diffusers.EulerDiscreteScheduler, steps=2)


@pytest.mark.parametrize("name, words", [
    ("DDIMInverseScheduler", "goes from a picture to noise"), ("DPMSolverMultistepInverseScheduler", "goes from a picture to noise"),
    ("DPMSolverSDEScheduler", "needs .*torchsde.*: install what is missing"), (None, 'should name its class: add "_class_name"')])
def test_a_scheduler_that_does_not_draw_is_refused(saved, name, words):
    import diffusers
    with pytest.raises(InputError, match=words):
        saved("star", sampler=getattr(diffusers, name) if name else {"num_train_timesteps": 1000})


def test_heun_does_not_clip_on_either_side():
    from diffusers import HeunDiscreteScheduler
    model = Diffusion(tiny_unet(), schedule=Schedule(predicts="noise", clip=1.0))
    ours, theirs = (model(2, sampler=sampler, steps=5, seed=3, output_type="pt", progress=False) for sampler in ("heun", HeunDiscreteScheduler))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_scheduler_of_another_path_is_named(saved):
    from diffusers import FlowMatchEulerDiscreteScheduler
    with pytest.raises(InputError, match='goes the path "vp", FlowMatchEulerDiscreteScheduler goes "flow"'):
        saved("star", sampler=FlowMatchEulerDiscreteScheduler)


@pytest.mark.parametrize("listed", [None, [None, None]])
def test_without_an_autoencoder_it_is_in_pixels(listed, tmp_path):
    model = Diffusion(tiny_dit(), labels=CLASSES)
    model.save_pretrained(tmp_path / "m")
    for path in [*(tmp_path / "m").rglob("digests.json"), *(tmp_path / "m" / "vae").iterdir()]:
        path.unlink(missing_ok=True)
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    (tmp_path / "m" / "model_index.json").write_text(json.dumps(index | {"vae": listed}))
    opened = Diffusion.from_pretrained(tmp_path / "m")
    assert opened.autoencoder is None
    assert torch.equal(*(m("star", steps=2, guidance=2.0, seed=0, output_type="pt") for m in (opened, model)))


def test_parts_in_each_others_places_are_named(saved, tmp_path):
    saved.save_pretrained(tmp_path / "m")
    for path in (tmp_path / "m").rglob("digests.json"):
        path.unlink()
    for a, b in (("vae", "spare"), ("transformer", "vae"), ("spare", "transformer")):
        (tmp_path / "m" / a).rename(tmp_path / "m" / b)
    with pytest.raises(CheckpointError, match="in each other's places"):
        Diffusion.from_pretrained(tmp_path / "m")


def test_a_picture_of_a_class_whose_name_is_anothers_too_replays(tmp_path):
    Diffusion(tiny_dit(), coder(), labels=("crane", "owl", "crane", "2")).save_pretrained(tmp_path / "m")
    drawn = Diffusion.from_pretrained(tmp_path / "m")
    made = drawn([0, 1, 3], steps=1, seed=0)
    made[0].save(tmp_path / "a.png")
    assert gencore.replay(tmp_path / "a.png").tobytes() == made[0].tobytes() != drawn("crane", steps=1, seed=0)[0].tobytes()


def test_a_number_that_is_another_classs_name_is_refused_and_its_pictures_replay(tmp_path):
    Diffusion(tiny_dit(), coder(), labels=("1", "2", "3", "4")).save_pretrained(tmp_path / "m")
    drawn = Diffusion.from_pretrained(tmp_path / "m")
    for label in (1, [2, 3]):
        with pytest.raises(InputError, match='label [12] is a name here, of class [01]: give names, such as "[12]"'):
            drawn(label, steps=1, seed=0)
    made = drawn(["2", "3"], steps=1, seed=0)
    made[1].save(tmp_path / "a.png")
    assert gencore.replay(tmp_path / "a.png").tobytes() == made[1].tobytes()
    others = Diffusion(tiny_dit(), coder(), labels=("0", "1", "2", "3"))
    assert others([1], steps=1, seed=0)[0].tobytes() == drawn("2", steps=1, seed=0)[0].tobytes()
    for wrong in (float("nan"), torch.tensor([1, 2])):
        with pytest.raises(InputError, match="label should be one of"):
            drawn([wrong], steps=1, seed=0)
