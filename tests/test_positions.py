"""gencore.positions against complex numbers, loops, transformers and diffusers."""

import math

import pytest
import torch
from reference import rotary_rates, rotated, sinusoid, t5_bucket

from gencore.check import ConfigError, InputError
from gencore.positions import (
    RelativeBias,
    RelativeConfig,
    Rotary,
    RotaryConfig,
    alibi_slopes,
    grid_positions,
    rotary_table,
    rotate,
    scaled_rates,
    sincos_2d,
    sinusoidal,
)
from gencore.positions import t5_bucket as our_bucket

B, N, T, E = 2, 3, 7, 16
close = torch.testing.assert_close


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_rotary_turns_complex_numbers(layout, partial):
    x, positions = torch.randn(B, N, T, E), torch.tensor([3, 4, 5, 900, 0, 1, 2])
    out = rotate(x, *rotary_table(positions, E, RotaryConfig(partial=partial, layout=layout)))
    rates = rotary_rates(int(E * partial), 10000.0)
    for b in range(B):
        for n in range(N):
            close(out[b, n].double(), rotated(x[b, n], positions, rates, layout), rtol=1e-4, atol=1e-4)


def test_rotated_products_depend_on_the_distance_only():
    q, k = torch.randn(1, 1, 1, E).double(), torch.randn(1, 1, 1, E).double()

    def product(query, key):
        return (rotate(q, *rotary_table(torch.tensor([query]), E, RotaryConfig()))
                * rotate(k, *rotary_table(torch.tensor([key]), E, RotaryConfig()))).sum()

    close(product(17, 12), product(105, 100), rtol=1e-5, atol=1e-5)
    close(product(5, 5), (q * k).sum(), rtol=1e-5, atol=1e-5)


def test_positions_by_row_equal_rows_alone():
    x, positions = torch.randn(B, N, T, E), torch.stack((torch.arange(T), torch.arange(T) - 2))
    out = rotate(x, *rotary_table(positions, E, RotaryConfig()))
    for b in range(B):
        close(out[b:b + 1], rotate(x[b:b + 1], *rotary_table(positions[b], E, RotaryConfig())))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("sizes, axes", [((2, 3), (8, 8)), ((2, 3, 2), (4, 6, 6))])
def test_rotary_over_axes_turns_each_part_by_its_axis(layout, sizes, axes):
    """Picture (H, W) and video (F, H, W): pair i of the head belongs to the axis whose share covers it."""
    positions = grid_positions(*sizes)
    x = torch.randn(1, 1, len(positions), E)
    out = rotate(x, *rotary_table(positions, E, RotaryConfig(axes=axes, layout=layout)))
    rates = [(axis, rate) for axis, width in enumerate(axes) for rate in rotary_rates(width, 10000.0)]
    for p, place in enumerate(positions):
        turns = [float(place[axis]) * rate for axis, rate in rates]                   # as rates of position 1
        close(out[0, 0, p:p + 1].double(), rotated(x[0, 0, p:p + 1], [1], turns, layout), rtol=1e-5, atol=1e-5)


def test_grid_positions_run_row_by_row():
    assert grid_positions(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert grid_positions(2, 1, 2).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]


SCALINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn with its own factor": {"factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3, "beta_fast": 16},
    "yarn of deepseek": {"factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn not truncated": {"factor": 4.0, "original_max_position_embeddings": 64, "truncate": False},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 64, "short_factor": [1.0 + i / 8 for i in range(8)],
                 "long_factor": [2.0 + i for i in range(8)]},
}


@pytest.mark.parametrize("length", [10, 64, 300])
@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_scalings_equal_transformers(name, length):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    kind = name.split()[0]
    rule = {"rope_type": kind, **SCALINGS[name]}
    theirs = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=256 if kind != "dynamic" else 64,
                         rope_parameters={"rope_theta": 500.0, **rule})
    if kind == "dynamic":
        rule["original_max_position_embeddings"] = 64
    if kind != "default":
        expected, factor = ROPE_INIT_FUNCTIONS[kind](theirs, "cpu", seq_len=length)
        rates, ours = scaled_rates(16, RotaryConfig(theta=500.0, scaling=rule), length)
        close(rates, expected, rtol=1e-6, atol=1e-8)
        assert ours == pytest.approx(factor, rel=1e-6)
    positions = torch.arange(length)[None]
    cos, sin = LlamaRotaryEmbedding(theirs)(torch.zeros(1, 1), positions)
    our_cos, our_sin, _ = rotary_table(positions, 16, RotaryConfig(theta=500.0, scaling=rule))
    close(our_cos[:, 0], cos, rtol=1e-4, atol=5e-5)                       # angles of 300 radians in float32
    close(our_sin[:, 0].abs(), sin.abs(), rtol=1e-4, atol=5e-5)


def test_the_old_name_of_the_type_is_read():
    cfg = RotaryConfig(scaling={"type": "linear", "factor": 2.0})
    close(scaled_rates(E, cfg)[0], scaled_rates(E, RotaryConfig())[0] / 2)


@pytest.mark.parametrize("cfg, sentence", [
    (RotaryConfig(scaling={"rope_type": "lineer", "factor": 2.0}), 'rotary scaling "lineer" is unknown \\(did you mean "linear"\\?\\)'),
    (RotaryConfig(scaling={"rope_type": "yarn", "factor": 2.0}), "rotary scaling yarn needs the field original_max_position_embeddings"),
    (RotaryConfig(theta=1.0, scaling={"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}), "a rope_theta above 1, got 1.0"),
    *((RotaryConfig(scaling={"rope_type": "longrope", "original_max_position_embeddings": old, "short_factor": [1.0] * short,
                             "long_factor": [1.0] * long}), "longrope needs 8 factors in short_factor and in long_factor")
      for old, short, long in ((64, 7, 8), (64, 8, 7), (1, 8, 8))),
    (RotaryConfig(axes=(8, 4)), "rotary axes should be even and sum to 16, got \\(8, 4\\)"),
    (RotaryConfig(axes=(9, 7)), "rotary axes should be even"),
    (RotaryConfig(partial=0.2), "rotary axes should be even and sum to 3"),
])
def test_wrong_rotary_configs_are_refused(cfg, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Rotary(E, cfg)


@pytest.mark.parametrize("field, value, words", [
    ("factor", 0, "should be between 1e-30 and 1e\\+30, got 0"), ("factor", "x", "should be float, got 'x'"),
    ("factor", float("nan"), "should be float, got nan"),
    ("original_max_position_embeddings", 0, "should be between 1"), ("long_factor", [1.0, 0.0], "should be between"),
])
def test_numbers_that_scale_no_rotary_are_refused(field, value, words):
    with pytest.raises(ConfigError, match=rf"RotaryConfig.scaling.{field}\S* {words}"):
        RotaryConfig(scaling={"rope_type": "linear", field: value})
    with pytest.raises(ConfigError, match="rotary scaling linear needs the field factor"):
        Rotary(E, RotaryConfig(scaling={"rope_type": "linear", "factor": None}))


@pytest.mark.parametrize("make, words", [
    (lambda: sincos_2d(2, 2, channels=6), "channels should be a multiple of 4 .*, got 6"),
    (lambda: sinusoidal(torch.arange(3), 2, "sin|cos", shift=1), "of width 2 with shift 1 have no wavelengths: the width should be at least 4"),
    (lambda: sinusoidal(torch.arange(3), 1), "of width 1 .* the width should be at least 2"),
    (lambda: alibi_slopes(0), "heads should be a whole number of at least 1, got 0"),
])
def test_sizes_that_hold_no_positions_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_positions_without_axes_are_refused_where_axes_are_needed():
    with pytest.raises(InputError, match=r"positions: rotary over 2 axes reads \(T, 2\) or \(B, T, 2\), got shape \(5,\)"):
        rotary_table(torch.arange(5), E, RotaryConfig(axes=(8, 8)))


def test_an_unknown_layout_is_refused():
    with pytest.raises(ConfigError, match="RotaryConfig.layout should be one of 'half', 'interleaved', got 'full'"):
        RotaryConfig(layout="full")


def test_rotary_keeps_the_type_of_x():
    assert rotate(torch.randn(1, 1, T, E).bfloat16(), *rotary_table(torch.arange(T), E, RotaryConfig())).dtype == torch.bfloat16


@pytest.mark.parametrize("width", [8, 7])
def test_sinusoids_are_the_paper_s(width):
    table = sinusoidal(torch.arange(5), width)
    for p in range(5):
        for c in range(width // 2 * 2):
            assert table[p, c] == pytest.approx(sinusoid(p, c, width // 2 * 2), abs=1e-5)
    assert table.shape == (5, width)


def test_sinusoids_equal_marian_and_musicgen():
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
    from transformers.models.musicgen.modeling_musicgen import MusicgenSinusoidalPositionalEmbedding

    marian = MarianSinusoidalPositionalEmbedding(20, 8)
    marian.weight = torch.nn.Parameter(marian.create_weight() if hasattr(marian, "create_weight") else marian.weight)
    close(sinusoidal(torch.arange(20), 8, "sin|cos"), marian.weight.detach(), rtol=1e-5, atol=1e-6)
    musicgen = MusicgenSinusoidalPositionalEmbedding(20, 8)
    close(sinusoidal(torch.arange(20), 8, "cos|sin", shift=1.0), musicgen.weights[:20], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("flip", [True, False])
def test_sinusoids_equal_diffusers_timesteps(shift, flip):
    from diffusers.models.embeddings import Timesteps

    t = torch.tensor([0.0, 1.0, 37.5, 999.0])
    expected = Timesteps(256, flip_sin_to_cos=flip, downscale_freq_shift=shift)(t)
    close(sinusoidal(t, 256, "cos|sin" if flip else "sin|cos", shift=shift), expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_sinusoidal_layout_is_refused():
    with pytest.raises(ConfigError, match='layout should be interleaved, sin|cos or cos|sin, got "sincos"'):
        sinusoidal(torch.arange(3), 8, "sincos")


@pytest.mark.parametrize("height, width, base, interpolation", [(4, 4, 4, 1.0), (4, 6, 4, 1.0), (6, 4, 8, 2.0)])
def test_picture_positions_equal_diffusers(height, width, base, interpolation):
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    expected = get_2d_sincos_pos_embed(16, (height, width), base_size=base, interpolation_scale=interpolation, output_type="pt")
    close(sincos_2d(height, width, 16, base, interpolation=interpolation), expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("two_way", [True, False])
@pytest.mark.parametrize("buckets, distance", [(32, 128), (8, 20)])
def test_t5_buckets_equal_the_words_of_the_paper_and_transformers(two_way, buckets, distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    offset = torch.arange(-200, 201)
    ours = our_bucket(offset, RelativeConfig(buckets=buckets, distance=distance, two_way=two_way))
    assert torch.equal(ours, T5Attention._relative_position_bucket(offset, two_way, buckets, distance))
    by_words = torch.tensor([t5_bucket(int(o), buckets, distance, two_way) for o in offset])
    assert (ours != by_words).sum() <= 4                                  # a logarithm that falls on a border rounds either way
    assert (ours - by_words).abs().max() <= 1


@pytest.mark.parametrize("heads", [1, 2, 8, 6, 12])
def test_alibi_slopes_equal_bloom(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    keep = torch.ones(1, 5)
    expected = build_alibi_tensor(keep, heads, torch.float32).view(heads, 5)               # slope * key
    close(alibi_slopes(heads)[:, None] * torch.arange(5), expected)
    bias = RelativeBias(heads, RelativeConfig(kind="alibi"))(torch.tensor([4]), torch.arange(5))     # slope * (key - query)
    close(bias[0, :, 0] - bias[0, :, 0, :1], expected, rtol=1e-5, atol=1e-5)


def test_alibi_of_eight_heads_is_the_published_row():
    assert alibi_slopes(8).tolist() == [2 ** -i for i in range(1, 9)]


def test_a_relative_bias_depends_on_the_distance_only():
    bias = RelativeBias(4, RelativeConfig())
    close(bias(torch.arange(5), torch.arange(5)), bias(torch.arange(40, 45), torch.arange(40, 45)))
    assert bias(torch.arange(5), torch.arange(9)).shape == (1, 4, 5, 9)
    assert math.prod(bias.table.weight.shape) == 32 * 4


@pytest.mark.parametrize("sizes", [{"buckets": 1}, {"buckets": 2}, {"buckets": 32, "distance": 8}, {"buckets": 2, "distance": 1, "two_way": False}])
def test_buckets_that_can_not_hold_the_distances_are_refused(sizes):
    with pytest.raises(ConfigError, match="buckets should leave some for distances from 1 to"):
        RelativeConfig(**sizes)
    assert RelativeConfig(kind="alibi", **sizes).kind == "alibi"


def test_a_field_of_a_scaling_rule_is_of_its_type():
    with pytest.raises(ConfigError, match="truncate"):
        RotaryConfig(scaling={"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "truncate": "x"})
