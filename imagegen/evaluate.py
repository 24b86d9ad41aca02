"""Figures of sets of pictures: how near made ones are to real ones, as matrices of features (N,D), a row for each picture.

    frechet_distance(features(made), features(real))
    precision_and_recall(features(made), features(real))

The features are whatever the caller names: those of a classifier, or the pixels. A figure means something only beside that of real pictures against
other real ones in the same features, and with as many of them; it is no FID or KID, which are distances in Inception's features.

Everything is computed in float64 and in parts: 10,000 rows of 576 numbers against 60,000 take 250 MB beside them, and half a minute of one core."""
from typing import NamedTuple

import torch

from gencore.check import InputError, dims, in_range, whole

ROWS = 2000                          # of each side in one part of a table of pairs


class PrecisionRecall(NamedTuple):
    """See `precision_and_recall`."""
    precision: float                 # share of the made ones that could be real
    recall: float                    # share of the real ones that could be made


class Copies(NamedTuple):
    """See `copies`."""
    nearer: float                    # chance that a made picture is nearer to the training pictures than a held-out one; 0.5 = no difference
    close: float                     # share of the made ones that are nearer than all but `tail` of the held-out ones; `tail` = no difference


class Modes(NamedTuple):
    """See `modes`."""
    reached: int                     # kinds that were made at least once
    divergence: float                # KL from how often each kind was made to all alike, in nats


# ---- distances of two sets ----

def frechet_distance(made, real):
    """made (N,D), real (M,D) -> squared distance of the Gaussians with their means and covariances (Dowson & Landau 1982; Heusel et al. 2017).

    It is too large for small sets, by an amount that grows with D / N: compare only at equal N."""
    _pair("made", made, "real", real, least=2)
    (mean_a, covariance_a), (mean_b, covariance_b) = gaussian(made), gaussian(real)
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    between = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()       # trace of (A B)^(1/2)
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * between
    return max(0.0, float(distance))


def gaussian(features):
    """features (N,D) -> (mean (D,), covariance (D,D) over N - 1), float64."""
    (N, D), mean = features.shape, mean_of(features)
    covariance = torch.zeros(D, D, dtype=torch.float64, device=features.device)
    for part in features.split(ROWS):
        away = part.double() - mean
        covariance += away.T @ away
    return mean, covariance / (N - 1)


def mean_of(features):
    """features (N,D) -> (D,) float64."""
    return sum(part.double().sum(0) for part in features.split(ROWS)) / len(features)


def kernel_distance(made, real, *, subset=1000, subsets=100, seed=0):
    """made (N,D), real (M,D) -> (mean, standard deviation) of the squared maximum mean discrepancy over random subsets (Binkowski et al. 2018).

    The estimate is unbiased, so it may be below 0; the deviation is that of one subset."""
    N, M, _ = _pair("made", made, "real", real, least=2)
    size, draws = min(whole("subset", subset, 2), N, M), torch.Generator().manual_seed(seed)
    whole("subsets", subsets, 1)
    values = torch.tensor([discrepancy(made[torch.randperm(N, generator=draws)[:size]], real[torch.randperm(M, generator=draws)[:size]])
                           for _ in range(subsets)], dtype=torch.float64)
    return float(values.mean()), float(values.std(correction=0))


def discrepancy(a, b):
    """a (N,D), b (M,D) -> unbiased estimate of MMD^2 under the kernel (x . y / D + 1)^3 (Gretton et al. 2012, eq. 3)."""
    N, M, D = _pair("a", a, "b", b, least=2)

    def total(left, right):
        return sum(float(((p.double() @ q.double().T / D + 1) ** 3).sum()) for p in left.split(ROWS) for q in right.split(ROWS))

    def with_itself(x):
        return sum(float(((p.double().square().sum(1) / D + 1) ** 3).sum()) for p in x.split(ROWS))

    within = (total(a, a) - with_itself(a)) / (N * (N - 1)) + (total(b, b) - with_itself(b)) / (M * (M - 1))
    return within - 2 * total(a, b) / (N * M)


# ---- neighbours ----

def precision_and_recall(made, real, *, k=3):
    """made (N,D), real (M,D) -> PrecisionRecall by neighbourhoods (Kynkaanniemi et al. 2019).

    What a set could hold is what lies in the ball of one of its rows, which reaches to that row's k-th nearest other row."""
    N, M, _ = _pair("made", made, "real", real, least=2)
    whole("k", k, 1, min(N, M) - 1)
    return PrecisionRecall(_share_inside(made, real, k), _share_inside(real, made, k))


def _share_inside(rows, of, k):
    """Share of `rows` that lie in the ball of some row of `of`."""
    reach = nearest_distances(of, of, k=k + 1)[:, k]                               # the nearest row of all is the row itself
    inside = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for start, squares in _squares(rows, of):
        inside[start[0]:start[0] + len(squares)] |= (squares.sqrt() <= reach[start[1]:start[1] + squares.shape[1]]).any(1)
    return float(inside.double().mean())


def copies(made, held_out, train, *, tail=0.01):
    """made (N,D), held_out (M,D), train (L,D) -> Copies: is what is made nearer to the training pictures than real ones are that were kept from them?

    `nearer` is the share of pairs of a made and a held-out picture in which the made one has the nearer nearest training picture, ties as a half:
    Mann and Whitney's U over N M (Meehan et al. 2020, "A non-parametric test to detect data-copying in generative models"). A few copies among
    many pictures hardly move it; `close` shows those. Give `train` whole: from a sample of it copies can't be seen."""
    in_range("tail", tail, 0.0, 1.0)
    _pair("made", made, "train", train)
    _pair("held_out", held_out, "train", train)
    of_made, of_held_out = (nearest_distances(rows, train)[:, 0] for rows in (made, held_out))
    ordered = of_held_out.sort().values
    below, up_to = (torch.searchsorted(ordered, of_made, right=right).double() for right in (False, True))
    nearer = 1 - (below + up_to).mean() / 2 / len(ordered)
    return Copies(float(nearer), float((of_made < ordered.quantile(tail)).double().mean()))


def nearest_distances(rows, among, *, k=1):
    """rows (N,D), among (M,D) -> (N,k) float64: Euclidean distances to the k nearest rows of `among`, nearest first."""
    N, M, _ = _pair("rows", rows, "among", among)
    whole("k", k, 1, M)
    found = torch.full((N, k), torch.inf, dtype=torch.float64, device=rows.device)
    for start, squares in _squares(rows, among):
        own = found[start[0]:start[0] + len(squares)]
        own.copy_(torch.cat((own, squares), 1).topk(k, largest=False).values)
    return found.sqrt()


def _squares(rows, among):
    """((first row, first of among), squared distances (n,m)) of every part of the table of pairs.

    By |x|^2 + |y|^2 - 2 x.y around the mean of `among`; float64 leaves it the digits that this subtraction takes."""
    mean = mean_of(among)
    for i, part in enumerate(rows.split(ROWS)):
        x = part.double() - mean
        for j, other in enumerate(among.split(ROWS)):
            y = other.double() - mean
            squares = torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1, keepdim=True))
            yield (i * ROWS, j * ROWS), squares.clamp_(min=0)


# ---- labels ----

def classification_accuracy(learn, made, real):
    """learn((N,...), (N,) long) -> a function from (M,...) to labels (M,); made, real: pictures and their labels -> accuracy on the real ones
    of what learnt from the made ones alone (Ravuri & Vinyals 2019, classification accuracy score)."""
    for name, (pictures, labels) in (("made", made), ("real", real)):
        if len(pictures) != len(labels) or not len(labels):
            raise InputError(f"{name} should be pictures and as many labels, at least one, got {len(pictures)} and {len(labels)}")
    pictures, labels = real
    return float((learn(*made)(pictures) == labels).double().mean())


def modes(found, kinds):
    """found (N,) long, the kind of each made picture, of 0 .. kinds - 1 -> Modes.

    N draws of all alike reach less than all where N is small, and their divergence is about (kinds - 1) / 2N, not 0."""
    dims("found", found, "N")
    if not torch.is_tensor(found) or found.is_floating_point():
        raise InputError(f"found should be a tensor of whole numbers, got {found.dtype}")
    if not len(found) or found.min() < 0 or found.max() >= kinds:
        raise InputError(f"found should be at least one number from 0 to {kinds - 1}")
    shares = torch.bincount(found, minlength=kinds).double() / len(found)
    return Modes(int((shares > 0).sum()), float(torch.special.xlogy(shares, shares * kinds).sum()))


def _pair(name, rows, other_name, others, *, least=1):
    """Two feature matrices checked -> (N, M, D)."""
    N, D = dims(name, rows, "N D")
    M, _ = dims(other_name, others, "M D", D=D)
    for what, matrix in ((name, rows), (other_name, others)):
        if not torch.is_tensor(matrix) or not matrix.is_floating_point():
            raise InputError(f"{what} should be a floating tensor, got {getattr(matrix, 'dtype', type(matrix).__name__)}: torch.as_tensor makes one")
        if len(matrix) < least or not D:
            raise InputError(f"{what} should have at least {least} rows of features, got shape {tuple(matrix.shape)}")
        if not torch.isfinite(matrix).all():
            raise InputError(f"{what} has features that are not finite: look at the pictures or the classifier")
    return N, M, D
