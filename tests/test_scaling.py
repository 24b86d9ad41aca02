"""textgen/scaling.py: known constants are found again, and which form foretells; the example, tiny."""

import json

import pytest

from gencore.check import InputError
from tests.scripts import EXAMPLES, run
from textgen.scaling import chosen_law, foretold, power_law

SIZES = [50_000, 110_000, 200_000, 450_000]


def losses_of(law, sizes=SIZES):
    return [foretold(law, size) for size in sizes]


@pytest.mark.parametrize("law", [(1.69, 406.4, 0.34), (0.0, 6.5, 0.076), (2.0, 30.0, 0.25)])         # Hoffmann's, Kaplan's slope, another
def test_known_constants_are_found_again(law):
    E, A, alpha = power_law(SIZES, losses_of(law), floor=law[0] > 0)
    assert E == pytest.approx(law[0], rel=2e-3) and A == pytest.approx(law[1], rel=2e-2) and alpha == pytest.approx(law[2], rel=5e-3)


@pytest.mark.parametrize("law", [(1.69, 406.4, 0.34), (0.0, 6.5, 0.076)])
def test_the_chosen_form_foretells_a_size_that_it_has_not_seen(law):
    found = chosen_law(SIZES, losses_of(law))
    assert (found[0] > 0.1) == (law[0] > 0.1)
    assert foretold(found, 5_000_000) == pytest.approx(foretold(law, 5_000_000), rel=2e-3)


def test_without_a_floor_the_fit_is_a_line_in_logarithms():
    losses = [5.0, 4.4, 4.1, 3.6]
    law = power_law(SIZES, losses, floor=False)
    residuals = [foretold(law, size) / loss for size, loss in zip(SIZES, losses)]
    product = residuals[0] * residuals[1] * residuals[2] * residuals[3]
    assert law[0] == 0 and product == pytest.approx(1, abs=1e-9)                                       # least squares in log L: they average out


@pytest.mark.parametrize("sizes, losses", [([1, 2], [3.0]), ([1], [3.0]), ([1, 2], [3.0, 0.0])])
def test_what_is_no_curve_is_refused(sizes, losses):
    with pytest.raises(InputError, match="as many losses as sizes, at least two different ones, all above 0"):
        power_law(sizes, losses, floor=False)


@pytest.mark.slow
def test_the_example_trains_five_sizes_and_foretells_the_fifth(tmp_path):
    (tmp_path / "text").mkdir()
    words = "The rain fell upon the roof of the old house, where nobody had lived for years.\n" * 300
    (tmp_path / "text" / "rain.txt").write_text(words, encoding="utf-8")
    printed = run(EXAMPLES / "text" / "scaling_laws.py", "--data", tmp_path / "text", "--widths", 4, 8, 12, 16, 20, "--steps", 6,
                  "--vocab", 300, "--out", tmp_path / "scaling.png")
    figures = json.loads((tmp_path / "scaling.json").read_text())
    assert figures["sizes"] == sorted(figures["sizes"]) and figures["losses"][-1] < figures["losses"][0]
    assert f"measured {figures['losses'][-1]:.4f}" in printed and (tmp_path / "scaling.png").stat().st_size > 5000


def test_sizes_that_are_the_same_are_said_before_anything_is_trained(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(EXAMPLES / "text" / "scaling_laws.py", "--widths", 32, 32, 32, 32, 40, "--out", tmp_path / "scaling.png")
    assert "--widths should be five different ones, got 32 32 32 32 40" in capsys.readouterr().err


def test_losses_that_make_no_law_are_named():
    for sizes, losses in (([1e3, 1e3], [3.0, 2.0]), ([1e3, 1e4], [3.0, float("nan")]), ([1e3, 1e4], [3.0, 0.0])):
        with pytest.raises(InputError, match="at least two different ones, all above 0"):
            power_law(sizes, losses, floor=False)
