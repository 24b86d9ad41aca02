"""Whatever a checkpoint folder holds, from_pretrained of every kind opens it or refuses it at once, naming file and tensor or field."""
import contextlib
import gc
import json
import random
import re
import tempfile
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from test_digest import BYTES, edit_header, swap_entries
from tiny_folders import OPENERS, save_all

from gencore.check import CheckpointError, CommonthreadError, ConfigError, UnknownNameError
from gencore.checkpoint import read_json, save_folder, seal
from gencore.digest import DIGESTS
from gencore.kinds import BY_TYPE
from gencore.tokenizer import Tokenizer, train_bpe
from textgen.families import KNOWN

KINDS = list(OPENERS)
DECLARED = {"CausalLM": "a causal language model", "TextToImage": "a painter", "Autoencoder": "an autoencoder of pictures",
            "TinyAutoencoder": "a tiny autoencoder of pictures", "VQAutoencoder": "a vector-quantized autoencoder of pictures", "GAN": "a GAN",
            "Diffusion": "a diffusion model of pictures", "ControlledTextToImage": "a painter led by lines", "Codec": "a codec",
            "TextToSpeech": "a speaker", "Captioner": "a reader of pictures"}


@pytest.fixture(scope="module")
def folders():
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        save_all(Path(place))
        for name in KINDS:
            OPENERS[name].from_pretrained(Path(place, name))         # imports take their time once
        gc.collect()
        gc.freeze()                                                  # nor is it a refusal's time that all that other tests left is walked
        yield Path(place)
        gc.unfreeze()


@pytest.fixture(params=KINDS)
def folder(request, folders):
    """One of them, put back as it was afterwards."""
    with kept(folders / request.param) as place:
        yield place


@contextlib.contextmanager
def kept(place):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    try:
        yield place
    finally:
        for path in place.rglob("*"):
            if path.is_file() and path not in before:
                path.unlink()
        for path, raw in before.items():
            path.write_bytes(raw)


@contextlib.contextmanager
def restored(path):
    """The bytes of a file, put back as they were afterwards."""
    raw = path.read_bytes()
    yield raw
    path.write_bytes(raw)


def refused(folder, error=CommonthreadError, opener=None, within=1.0):
    """The one sentence with which a folder is refused, soon."""
    begin = time.process_time()
    with pytest.raises(error) as caught:
        OPENERS[opener or folder.name].from_pretrained(folder)
    message = str(caught.value)
    assert time.process_time() - begin < within and "\n" not in message and len(message) < 1500, message
    return message


def foreign(folder):
    """Without digests, as folders of other libraries are."""
    for path in folder.rglob(DIGESTS):
        path.unlink()


def edit(path, field, value):
    """Puts a value at a dotted field of a JSON file."""
    values = json.loads(path.read_text())
    *parents, leaf = field.split(".")
    place = values
    for parent in parents:
        place = place[parent]
    place[leaf] = value
    path.write_text(json.dumps(values))


# ---- kinds ----

@pytest.mark.parametrize("kind, opener", [pair for pair in product(KINDS, KINDS) if pair[0] != pair[1]])
def test_a_folder_of_another_kind_says_what_it_is_and_who_opens_it(folders, kind, opener):
    place = folders / kind
    package = OPENERS[kind].__module__.split(".")[0]
    assert refused(place, CheckpointError, opener) == f"{place} holds {DECLARED[kind]}: open it with {package}.{kind}.from_pretrained"


@pytest.mark.parametrize("files", [{"config.json": {"model_type": "resnet"}}, {"config.json": {"width": 3}}, {"config.json": {}},
                                   {"model_index.json": {"_class_name": "FluxPipeline"}}, {"model_index.json": {}}])
@pytest.mark.parametrize("opener", KINDS)
def test_a_folder_of_no_kind_says_so(tmp_path, files, opener):
    save_folder(tmp_path / "m", {**files, "model.safetensors": {"w": torch.ones(2)}})
    assert f"{tmp_path / 'm'} holds no model that this toolkit knows" in refused(tmp_path / "m", CheckpointError, opener)


def test_every_language_model_that_is_read_has_a_kind():
    assert set(BY_TYPE) == {*KNOWN, "llava"}


# ---- files ----

def test_a_listed_file_that_is_gone_is_named(folder):
    listed = json.loads((folder / DIGESTS).read_text()).keys() - {DIGESTS}
    assert listed == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {DIGESTS}
    for name in listed:
        with restored(folder / name):
            (folder / name).unlink()
            message = refused(folder, CheckpointError)
        assert name in message or (name in ("config.json", "model_index.json") and f"the folder {folder} has no {name}" in message), message


def test_every_listed_json_file_is_checked_also_those_for_other_libraries(folder):
    for path in folder.rglob("*.json"):
        with restored(path) as raw:
            path.write_bytes(raw[:len(raw) // 2])
            assert str(path) in refused(folder, CheckpointError)


@pytest.mark.parametrize("kind", ["CausalLM", "TextToImage", "Captioner"])
def test_a_tokenizer_with_more_tokens_than_rows_is_refused_with_both_figures(folders, kind):
    with kept(folders / kind) as place:
        words = place / "tokenizer" if kind == "TextToImage" else place
        rows, bigger = len(Tokenizer.from_folder(words)), train_bpe(["a dark night in a red town, and who is there?"] * 2, 270)
        for name, values in bigger.files().items():
            (words / name).write_text(json.dumps(values))
        seal(place)
        message = refused(place, CheckpointError)
        assert "270" in message and str(rows) in message and "are not of one" in message


# ---- what is impossible, or far too much ----

IMPOSSIBLE = {
    "CausalLM": {"config.json": {"max_position_embeddings": (-4, 0), "rope_parameters.rope_theta": (-1, 0), "eos_token_id": ("x", 1.5),
                                 "vocab_size": (0, 1e12), "hidden_size": (10 ** 9, None), "num_hidden_layers": (0, -1, 10 ** 6),
                                 "num_attention_heads": ("two", True, 0), "head_dim": (3, -8), "rms_norm_eps": (-1e-6, "small", 10 ** 400)},
                 "generation_config.json": {"eos_token_id": ("x",)}},
    "TextToImage": {"vae/config.json": {"scaling_factor": (0, -1, "x"), "block_out_channels": ([], [4, 0], 4), "layers_per_block": (0, 10 ** 6)},
                    "scheduler/scheduler_config.json": {"flow_shift": (-3, "x", 0, True), "prediction_type": ("epsilon",),
                                                        "use_karras_sigmas": (True,)},
                    "transformer/config.json": {"num_layers": (10 ** 6, 0), "patch_size": (0, 3), "sample_size": (10 ** 9,),
                                                "attention_head_dim": (0, "x"), "interpolation_scale": (-1,)},
                    "text_encoder/config.json": {"num_layers": (10 ** 6,), "d_ff": (0, 1.5), "relative_attention_num_buckets": (0,)}},
    "Autoencoder": {"config.json": {"scaling_factor": (0, -1, "x"), "block_out_channels": ([], [4, 0], 4), "layers_per_block": (0, 10 ** 6),
                                    "latent_channels": (0, "x"), "shift_factor": ("x", []), "act_fn": ("gelu",), "in_channels": (0, "x")}},
    "TinyAutoencoder": {"config.json": {"scaling_factor": (0, "x"), "encoder_block_out_channels": ([], [4, 0], 4), "num_decoder_blocks": (0, [1]),
                                        "latent_channels": (0, "x"), "act_fn": ("gelu",), "latent_magnitude": (5,)}},
    "VQAutoencoder": {"config.json": {"scaling_factor": (0, -1, "x"), "block_out_channels": ([], [4, 0], 4), "num_vq_embeddings": (0, "x", 10 ** 9),
                                      "vq_embed_dim": (0, "x"), "lookup_from_codebook": (True,)}},
    "GAN": {"config.json": {"size": (0, 12, 10 ** 9), "widths": ([], [8, 0], [20000, 8], 8), "latent": (0, 10 ** 9), "blocks": (0, 300, 2),
                            "attention": (3, -1, 0), "heads": (0, 3), "labels": (["a", "a"], [1], [], "left"), "picture_channels": (0, 3)}},
    "Diffusion": {"model_index.json": {"id2label": ([], {"1": "a"}, "x", {"0": 3}, {"0": "a", "1": "b", "2": "c"})},
                  "vae/config.json": {"scaling_factor": (0, -1, "x"), "block_out_channels": ([], [4, 0], 4), "shift_factor": ("x", [])},
                  "scheduler/scheduler_config.json": {
                      "num_train_timesteps": (0, "x", 10 ** 9), "beta_start": (-1, "x", 0.9), "steps_offset": (-1, 2), "clip_sample": ("x",),
                      "prediction_type": ("sampled", 3, []), "timestep_spacing": ("even", None), "beta_schedule": ("laplace", []),
                      "thresholding": (True,), "_class_name": ("PNDMScheduler", [])},
                  "transformer/config.json": {"num_layers": (10 ** 6, 0), "patch_size": (0, 3), "sample_size": (10 ** 9,),
                                              "num_embeds_ada_norm": (0, "x"), "attention_head_dim": (0, "x"), "norm_type": ("ada_norm_single",)}},
    "ControlledTextToImage": {"config.json": {"copied": (0, -1, 3, 300, "x"), "stem": (0, 10 ** 9, 6, None)},
                              "painter/transformer/config.json": {"num_layers": (10 ** 6, 0), "patch_size": (0, 3), "sample_size": (10 ** 9,)}},
    "Codec": {"config.json": {"hop": (0, -128, 300), "sample_rate": (0, "x"), "width": (20000, 0, -8), "kernel": (0, 4), "window": (0,),
                              "encoder_blocks": (10 ** 6,), "quantize.codes": (10 ** 9, 0), "quantize.books": (10 ** 6, 1), "mels": (0, None)}},
    "TextToSpeech": {"config.json": {"model.transformer.layers": (10 ** 6, 0), "model.codes": (10 ** 9,), "model.words": ([], ["yes", "yes"]),
                                     "model.weights": ([], [0.0, 0.0]), "model.longest": (0, 10 ** 9), "settings.guidance": (-1,), "codec": ("x", ""),
                                     "model.transformer.rotary.axes": ([],), "model.transformer.width": (20000,), "codec_digest": ("0",)},
                     "codec/config.json": {"width": (20000,), "hop": (0,)}},
    "Captioner": {"config.json": {"text_config.num_hidden_layers": (10 ** 6,), "text_config.hidden_size": (20000, None),
                                  "image_token_index": (263, -1),
                                  "vision_config.image_size": (10 ** 6, 0), "vision_config.patch_size": (0,), "vision_config": (5, None),
                                  "text_config.rope_parameters.rope_theta": (0, None),
                                  "text_config.max_position_embeddings": (-4,)}},
}


def test_impossible_values_of_a_foreign_folder_are_refused_with_file_and_field(folder):
    foreign(folder)
    OPENERS[folder.name].from_pretrained(folder)
    for file, fields in IMPOSSIBLE[folder.name].items():
        for field, values in fields.items():
            for value in values:
                with restored(folder / file):
                    edit(folder / file, field, value)
                    message = refused(folder, (CheckpointError, ConfigError, UnknownNameError))
                weights = re.search(r'\.safetensors.*(tensor "|"[\w.]+" should have|weights )', message)
                assert str(folder / file) in message and _names(message, field) or weights, (field, value, message)


OURS = {"num_train_timesteps": "count", "beta_start": "low", "steps_offset": "offset", "timestep_spacing": "spacing", "beta_schedule": "betas",
        "num_embeds_ada_norm": "classes", "id2label": "labels", "shift_factor": "shift", "sample_size": "size",
        "image_size": "image", "block_out_channels": "channels", "rope_theta": "theta",
        "patch_size": "patch", "encoder_block_out_channels": "encoder", "num_decoder_blocks": "decoder_blocks",
        "num_vq_embeddings": "codes", "vq_embed_dim": "width"}


def _names(message, field):
    """Is the field named, by their name or ours?"""
    leaf = field.split(".")[-1]
    return leaf in message or OURS.get(leaf, leaf) in message


JUNK = (0, -1, 10 ** 6, 2 ** 63, 10 ** 400, 1e300, True, "x", "", None, [], [1], {}, {"a": 1})


def leaves(values, path=""):
    for name, value in values.items():
        yield path + name
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{name}.")


def put_junk_everywhere(folder, times, seed):
    """Any field of any configuration holds anything: the folder opens, or is refused by a sentence that names a file, soon."""
    draw, opened = random.Random(seed), 0
    foreign(folder)
    files = [path for path in sorted(folder.rglob("*.json")) if "tokenizer" not in path.name]
    for _ in range(times):
        path = draw.choice(files)
        with restored(path) as raw:
            edit(path, draw.choice(sorted(leaves(json.loads(raw)))), draw.choice(JUNK))
            begin = time.process_time()
            try:
                OPENERS[folder.name].from_pretrained(folder)
                opened += 1
            except CommonthreadError as error:
                assert str(folder) in str(error) and re.search(r"\.json|\.safetensors", str(error))
            assert time.process_time() - begin < 1.0
    if folder.name == "GAN":
        assert opened == 0                                       # every field of its configuration says how the weights look
    else:
        assert 0 < opened < times                                # there are fields that nothing here reads


def test_junk_in_any_field_of_a_foreign_folder_ends_in_a_sentence(folder):
    put_junk_everywhere(folder, 60, seed=1)


@pytest.mark.slow
def test_junk_in_any_field_of_a_foreign_folder_ends_in_a_sentence_600_times(folder):
    put_junk_everywhere(folder, 600, seed=2)


# ---- changed bytes: 40 weight files and 10 configurations of each kind: more than the 200 and 50 of the promise ----

def mutated(raw, changes, draw):
    """Bytes that one of the changes made others."""
    after = raw
    while after == raw:
        after = draw.choice(changes)(raw, draw)
    return after


def mutate_weights(folder, times, seed):
    draw, files = random.Random(seed), sorted(folder.rglob("*.safetensors"))
    for _ in range(times):
        path = draw.choice(files)
        with restored(path):
            path.write_bytes(mutated(path.read_bytes(), [*BYTES, swap_entries, edit_header], draw))
            message = refused(folder, CheckpointError)
        assert str(path) in message and re.search(r'header|tensor "[^"]+"|"[\w.]+" should (?:have shape|equal)', message), message
    OPENERS[folder.name].from_pretrained(folder)


def test_40_mutated_weight_files_of_each_kind_are_refused(folder):
    mutate_weights(folder, 40, seed=1)


@pytest.mark.slow
def test_400_mutated_weight_files_of_each_kind_are_refused(folder):
    mutate_weights(folder, 400, seed=2)


def mutate_configurations(folder, times, seed):
    """With digests: any change of any JSON file."""
    draw, files = random.Random(seed), sorted(path for path in folder.rglob("*.json") if path.name != DIGESTS)
    for turn in range(times):
        path = draw.choice(files)
        with restored(path) as raw:
            if turn % 2:
                values = read_json(path)
                field = draw.choice(sorted(values))
                edit(path, field, draw.choice([value for value in JUNK if value != values[field]]))
                assert f'field "{field}" differs' in (message := refused(folder, CheckpointError)), message
            else:
                path.write_bytes(mutated(raw, BYTES, draw))
                assert re.search("field|not UTF-8|spaces or the order", message := refused(folder, CheckpointError)), message
        assert str(path) in message
    OPENERS[folder.name].from_pretrained(folder)


def test_10_mutated_configurations_of_each_kind_are_refused(folder):
    mutate_configurations(folder, 10, seed=1)


@pytest.mark.slow
def test_100_mutated_configurations_of_each_kind_are_refused(folder):
    mutate_configurations(folder, 100, seed=2)


SIZES = {                                                        # what the shapes in the weights contradict
    "CausalLM": {"config.json": "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size"},
    "TextToImage": {"transformer/config.json": "in_channels num_layers patch_size num_attention_heads caption_channels out_channels",
                    "text_encoder/config.json": "vocab_size d_model num_layers num_heads d_kv d_ff relative_attention_num_buckets",
                    "vae/config.json": "layers_per_block latent_channels in_channels"},
    "Autoencoder": {"config.json": "layers_per_block latent_channels in_channels"},
    "TinyAutoencoder": {"config.json": "latent_channels in_channels"},
    "VQAutoencoder": {"config.json": "layers_per_block latent_channels in_channels num_vq_embeddings vq_embed_dim"},
    "GAN": {"config.json": "picture_channels blocks latent attention"},
    "Diffusion": {"transformer/config.json": "in_channels num_layers patch_size num_attention_heads out_channels num_embeds_ada_norm",
                  "vae/config.json": "layers_per_block latent_channels in_channels"},
    "ControlledTextToImage": {"config.json": "copied stem",
                              "painter/transformer/config.json": "in_channels num_layers patch_size num_attention_heads caption_channels"},
    "Codec": {"config.json": "window width encoder_blocks decoder_blocks kernel expansion quantize.width quantize.books quantize.codes"},
    "TextToSpeech": {"config.json": "model.books model.codes model.transformer.width model.transformer.layers model.transformer.mlp.width",
                     "codec/config.json": "width encoder_blocks kernel quantize.width quantize.books quantize.codes"},
    "Captioner": {"config.json": "text_config.vocab_size text_config.hidden_size text_config.num_hidden_layers text_config.intermediate_size "
                                 "vision_config.image_size vision_config.hidden_size vision_config.num_hidden_layers vision_config.num_channels"}}


def contradict(folder, times, seed):
    """Without digests: a size that is not that of the weights, which only their header can tell."""
    draw = random.Random(seed)
    foreign(folder)
    choices = [(folder / file, field) for file, fields in SIZES[folder.name].items() for field in fields.split()]
    for _ in range(times):
        path, field = draw.choice(choices)
        with restored(path) as raw:
            value = json.loads(raw)
            for part in field.split("."):
                value = value[part]
            edit(path, field, draw.choice([value + 1, value + 2, value * 2, value * 3, value - 1, max(value // 2, value - 7)]))
            message = refused(folder, (CheckpointError, ConfigError))
        assert re.search(r"\.json|\.safetensors", message) and str(path.parent) in message, message
    OPENERS[folder.name].from_pretrained(folder)


def test_10_configurations_of_each_kind_that_contradict_the_weights_are_refused(folder):
    contradict(folder, 10, seed=3)


@pytest.mark.slow
def test_100_configurations_of_each_kind_that_contradict_the_weights_are_refused(folder):
    contradict(folder, 100, seed=4)
