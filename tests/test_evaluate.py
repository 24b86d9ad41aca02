"""imagegen/evaluate.py: figures of sets against closed forms, scipy, loops over pairs and small cases by hand; parts of any size, wrong input."""
import itertools
import math

import numpy as np
import pytest
import torch

from gencore.check import InputError
from imagegen import evaluate
from imagegen.evaluate import (
    classification_accuracy,
    copies,
    discrepancy,
    frechet_distance,
    kernel_distance,
    modes,
    nearest_distances,
    precision_and_recall,
)


def normal(rows, width, seed, *, scale=1.0, shift=0.0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale + shift


def with_moments(mean, covariance, seed, rows=50):
    """Rows whose mean and covariance are exactly these (float64)."""
    rows = normal(rows, len(mean), seed).double()
    rows = rows - rows.mean(0)
    rows = rows @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(rows.T))).T
    return rows @ torch.linalg.cholesky(covariance).T + mean


def covariance_of(seed, width):
    root = normal(width, width, seed).double()
    return root @ root.T + 0.1 * torch.eye(width, dtype=torch.float64)


# ---- distances of two sets ----

def test_frechet_distance_of_known_gaussians_is_the_closed_form():
    """Covariances that commute: the sum over axes of (root a - root b)^2, and the squared distance of the means."""
    a, b = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64), torch.tensor([4.0, 4.0, 0.25], dtype=torch.float64)
    mean = torch.tensor([3.0, 0.0, -4.0], dtype=torch.float64)
    found = frechet_distance(with_moments(torch.zeros(3).double(), torch.diag(a), 0), with_moments(mean, torch.diag(b), 1, rows=80))
    assert found == pytest.approx(25 + 1 + 0 + 2.5 ** 2, rel=1e-9)


def test_frechet_distance_equals_scipys_matrix_root():
    from scipy.linalg import sqrtm
    A, B = covariance_of(2, 6), covariance_of(3, 6)
    made, real = with_moments(torch.ones(6).double(), A, 4), with_moments(torch.zeros(6).double(), B, 5)
    wanted = 6 + float(A.trace() + B.trace()) - 2 * np.trace(sqrtm((A @ B).numpy())).real
    assert frechet_distance(made, real) == pytest.approx(wanted, rel=1e-8) == pytest.approx(frechet_distance(real, made), rel=1e-8)


def test_frechet_distance_holds_where_rows_are_fewer_than_features():
    """A flat cloud moved along one axis: only the means differ, and nothing turns into nan."""
    made = normal(5, 20, 6)
    assert frechet_distance(made, made) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(made + torch.eye(20)[3] * 2, made) == pytest.approx(4, abs=1e-5)


def kernel_by_loops(a, b):
    """The unbiased estimate, one pair at a time."""
    def k(x, y):
        return (sum(p * q for p, q in zip(x, y)) / len(x) + 1) ** 3

    a, b = a.double().tolist(), b.double().tolist()
    within = [sum(k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) / (len(s) * (len(s) - 1)) for s in (a, b)]
    return sum(within) - 2 * sum(k(x, y) for x in a for y in b) / (len(a) * len(b))


def test_the_discrepancy_equals_a_loop_over_pairs():
    a, b = normal(7, 4, 0), normal(9, 4, 1, shift=0.5)
    assert discrepancy(a, b) == pytest.approx(kernel_by_loops(a, b), rel=1e-10)


def test_the_discrepancy_is_unbiased():
    """Over every draw of two rows from three, its mean is the discrepancy of the two populations themselves, all pairs counted."""
    a, b = normal(3, 2, 2).double(), normal(3, 2, 3, shift=1.0).double()
    draws = list(itertools.product(range(3), repeat=2))
    mean = sum(discrepancy(a[list(i)], b[list(j)]) for i in draws for j in draws) / len(draws) ** 2
    whole = [float(((x @ y.T / 2 + 1) ** 3).mean()) for x, y in ((a, a), (b, b), (a, b))]
    assert mean == pytest.approx(whole[0] + whole[1] - 2 * whole[2], rel=1e-10)


def test_kernel_distance_of_one_subset_of_all_is_the_discrepancy():
    a, b = normal(30, 4, 0), normal(30, 4, 1, shift=0.5)
    mean, deviation = kernel_distance(a, b, subset=1000, subsets=3)
    assert mean == pytest.approx(discrepancy(a, b), rel=1e-10) and deviation == pytest.approx(0, abs=1e-10)
    parts = kernel_distance(a, b, subset=10, subsets=400)
    assert parts[0] == pytest.approx(mean, abs=4 * parts[1] / 20) and parts[1] > 0          # four standard errors
    assert parts == kernel_distance(a, b, subset=10, subsets=400) != kernel_distance(a, b, subset=10, subsets=400, seed=1)


# ---- neighbours ----

def share_inside_by_loops(rows, of, k):
    inside = 0
    for x in rows.double():
        for i, centre in enumerate(of.double()):
            others = sorted(math.dist(centre, y) for j, y in enumerate(of.double()) if j != i)
            if math.dist(x, centre) <= others[k - 1]:
                inside += 1
                break
    return inside / len(rows)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_loops_over_balls(k):
    made, real = normal(14, 3, 0, shift=1.0), normal(17, 3, 1)
    found = precision_and_recall(made, real, k=k)
    assert found == (share_inside_by_loops(made, real, k), share_inside_by_loops(real, made, k))
    assert 0 < found.recall < 1 and 0 < found.precision < 1 and found.recall != found.precision


def test_precision_sees_bad_pictures_and_recall_sees_missing_ones():
    one, other, far = normal(200, 2, 0), normal(200, 2, 1, shift=50.0), normal(200, 2, 2, shift=500.0)
    both = torch.cat((one, other))
    assert precision_and_recall(one, one) == (1, 1) and precision_and_recall(far, one) == (0, 0)
    assert precision_and_recall(one, both) == (1, 0.5)                                      # one kind of two
    assert precision_and_recall(torch.cat((both, far)), both) == (pytest.approx(2 / 3), 1)   # a third is like nothing real


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_parts_of_any_size_give_the_same(rows, monkeypatch):
    made, held_out, train = normal(11, 3, 0), normal(13, 3, 1), normal(23, 3, 2)
    figures = [frechet_distance, discrepancy, precision_and_recall]
    wanted = [f(made, train) for f in figures] + [copies(made, held_out, train)]
    monkeypatch.setattr(evaluate, "ROWS", rows)
    found = [f(made, train) for f in figures] + [copies(made, held_out, train)]
    assert found[0] == pytest.approx(wanted[0], rel=1e-9) and found[1] == pytest.approx(wanted[1], rel=1e-9) and found[2:] == wanted[2:]


def test_nearest_distances_are_exact_far_from_the_origin():
    """Rows a millionth apart at 1000: what |x|^2 + |y|^2 - 2 x.y loses in float32."""
    among = (normal(40, 5, 0) * 1e-6).double() + 1000
    rows = (normal(9, 5, 1) * 1e-6).double() + 1000
    wanted = torch.cdist(rows, among, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values[:, :4]
    torch.testing.assert_close(nearest_distances(rows, among, k=4), wanted, rtol=1e-5, atol=0)


def test_copies_counts_pairs_and_halves_ties():
    """On a line, training pictures at 0 and 10: held-out ones are 1, 2 and 3 away; made ones 0, 2 and 5 away win 3, 1.5 and 0 of three pairs."""
    train, held_out, made = (torch.tensor(rows)[:, None] for rows in ([0.0, 10.0], [1.0, -2.0, 13.0], [10.0, 8.0, 5.0]))
    found = copies(made, held_out, train)
    assert found.nearer == pytest.approx(4.5 / 9) and found.close == pytest.approx(1 / 3)
    assert copies(made, held_out, train, tail=0.75) == (found.nearer, pytest.approx(2 / 3))        # 2.5 and less


def test_copies_tells_a_copier_from_a_model_that_knows_the_distribution():
    train, held_out, fresh = normal(400, 4, 0), normal(400, 4, 1), normal(400, 4, 2)
    assert copies(fresh, held_out, train).nearer == pytest.approx(0.5, abs=0.06)
    assert copies(train + 1e-3, held_out, train) == (pytest.approx(1, abs=1e-3), 1)
    some = torch.cat((fresh[:360], train[:40]))                                              # a tenth is copied
    assert copies(some, held_out, train).close > 0.1 and copies(some, held_out, train).nearer < 0.6
    assert copies(normal(400, 4, 3, scale=4.0), held_out, train).nearer < 0.1                 # far from everything: bad, but no copies


# ---- labels ----

def test_classification_accuracy_is_that_of_what_learnt_from_made_pictures():
    """Nearest mean as the classifier: made pictures with two labels exchanged teach it the exchange."""
    def learn(pictures, labels):
        means = torch.stack([pictures[labels == i].mean(0) for i in range(3)])
        return lambda shown: torch.cdist(shown, means).argmin(1)

    labels = torch.arange(30) % 3
    real = normal(30, 2, 0, scale=0.1) + torch.eye(3)[labels, :2] * 5
    exchanged = torch.tensor([1, 0, 2])[labels]
    assert classification_accuracy(learn, (real, labels), (real, labels)) == 1
    assert classification_accuracy(learn, (real, exchanged), (real, labels)) == pytest.approx(1 / 3)


def test_modes_counts_kinds_and_their_divergence_from_all_alike():
    assert modes(torch.arange(8), 8) == (8, pytest.approx(0, abs=1e-12))
    assert modes(torch.zeros(50, dtype=torch.long), 8) == (1, pytest.approx(math.log(8)))
    assert modes(torch.tensor([0, 0, 0, 5]), 8) == (2, pytest.approx(0.75 * math.log(6) + 0.25 * math.log(2)))


# ---- wrong input ----

def test_wrong_input_is_named():
    good = normal(5, 3, 0)
    for call, words in [(lambda: frechet_distance(good, normal(5, 4, 0)), "real: D should be 3, got 4"),
                        (lambda: frechet_distance(good[:1], good), "made should have at least 2 rows"),
                        (lambda: frechet_distance(good / 0, good), "made has features that are not finite"),
                        (lambda: discrepancy(good, good[0]), "b: expected 2 dimensions"),
                        (lambda: precision_and_recall(good, good, k=5), "k should be a whole number between 1 and 4, got 5"),
                        (lambda: nearest_distances(good, good, k=6), "k should be a whole number between 1 and 5"),
                        (lambda: copies(good, good, good, tail=2), "tail should be between"),
                        (lambda: kernel_distance(good, good, subset=1), "subset should be a whole number of at least 2"),
                        (lambda: classification_accuracy(None, (good, torch.zeros(4)), (good, torch.zeros(5))), "made should be pictures and as"),
                        (lambda: modes(torch.tensor([8]), 8), "from 0 to 7")]:
        with pytest.raises(InputError, match=words):
            call()


def test_features_of_another_kind_are_named():
    with pytest.raises(InputError, match="made should be a floating tensor, got float64: torch.as_tensor makes one"):
        frechet_distance(torch.zeros(4, 2).numpy().astype("f8"), torch.zeros(4, 2))
    with pytest.raises(InputError, match="found should be a tensor of whole numbers, got torch.float32"):
        modes(torch.zeros(3), 2)
