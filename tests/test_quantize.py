"""Quantisers against nearest neighbours by hand, closed forms, and what their training promises."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gencore.check import ConfigError, InputError
from gencore.quantize import FSQ, QuantizeConfig, ResidualVQ, VectorQuantizer, k_means

SMALL = QuantizeConfig(width=3, books=3, codes=8, warmup=0, dropout=0.0)


def clusters(count=8, each=20, spread=0.01, seed=0):
    """Points (1, count * each, 3) around `count` centres (count, 3)."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, 3, generator=g)
    return (centres[:, None] + spread * torch.randn(count, each, 3, generator=g)).view(1, -1, 3), centres


def started(cfg=SMALL, seed=0):
    quantizer = ResidualVQ(cfg)
    for i, book in enumerate(quantizer.books):
        book.set_codebook(torch.randn(cfg.codes, cfg.width, generator=torch.Generator().manual_seed(seed + i)) / (i + 1))
    return quantizer.eval()


def test_every_vector_gets_its_nearest_code():
    book = started().books[0]
    x = torch.randn(2, 5, 3)
    values, codes, commitment = book(x)
    for b in range(2):
        for t in range(5):
            distances = [(x[b, t] - row).square().sum() for row in book.codebook]
            assert codes[b, t] == torch.stack(distances).argmin()
    torch.testing.assert_close(values, book.codebook[codes])
    torch.testing.assert_close(commitment, (x - book.codebook[codes]).square().mean())


def test_gradients_pass_straight_through_a_stack_once():
    x = torch.randn(2, 5, 3, requires_grad=True)
    values = started()(x).values
    upstream = torch.randn_like(values)
    values.backward(upstream)
    torch.testing.assert_close(x.grad, upstream)


def test_commitment_pulls_the_input_towards_its_code():
    x = torch.randn(1, 4, 3, requires_grad=True)
    book = started().books[0]
    book(x).commitment.backward()
    torch.testing.assert_close(x.grad, 2 * (x - book(x).values).detach() / x.numel())


def test_residual_books_code_what_is_left():
    quantizer, x = started(), torch.randn(2, 5, 3)
    codes = quantizer(x).codes                                            # (B, K, T)
    left = x
    for book, ids in zip(quantizer.books, codes.unbind(1)):
        assert ids.equal(book.nearest(left.reshape(-1, 3)).view(2, 5))
        left = left - book.codebook[ids]
    torch.testing.assert_close(quantizer.lookup(codes), x - left)


def test_more_books_come_closer_on_the_data_they_follow():
    x, _ = clusters(count=30, spread=0.3)
    quantizer = ResidualVQ(QuantizeConfig(width=3, books=4, codes=8, warmup=0, dropout=0.0)).train()
    for step in range(30):
        quantizer(x, torch.Generator().manual_seed(step))
    quantizer.eval()
    codes = quantizer(x).codes
    errors = [float((quantizer.lookup(codes[:, :k]) - x).square().mean()) for k in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.1 * errors[0]


def test_moving_averages_follow_their_closed_form():
    cfg = QuantizeConfig(width=1, books=1, codes=2, decay=0.9, dead=0.0)
    book = VectorQuantizer(cfg).train()
    book.set_codebook(torch.tensor([[0.0], [10.0]]))
    book(torch.tensor([[[1.0], [2.0], [11.0]]]))
    counts = torch.tensor([0.9 * 1 + 0.1 * 2, 0.9 * 1 + 0.1 * 1])
    sums = torch.tensor([[0.9 * 0 + 0.1 * 3], [0.9 * 10 + 0.1 * 11]])
    torch.testing.assert_close(book.counts, counts)
    torch.testing.assert_close(book.codebook, sums / counts[:, None])


def test_moving_averages_stay_in_float32_under_autocast():
    book, points = VectorQuantizer(SMALL), clusters()[0]
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            book(points.bfloat16(), torch.Generator().manual_seed(0))
    assert book.codebook.dtype == book.sums.dtype == torch.float32
    assert not torch.equal(book.sums, book.sums.bfloat16().float())


def test_k_means_finds_separate_clusters_and_starts_the_book():
    points, centres = clusters(count=3)
    farthest = [float(torch.cdist(centres, k_means(points[0], 3, generator=torch.Generator().manual_seed(seed))).min(1).values.max())
                for seed in range(20)]
    assert min(farthest) < 0.05                                           # some start reaches all three
    x, _ = clusters()
    book = VectorQuantizer(SMALL).train()
    book(x, torch.Generator().manual_seed(0))
    assert book.started and book.eval()(x).commitment < 0.2 * x.var()


def test_dead_codes_are_restarted_from_the_batch():
    cfg = QuantizeConfig(width=2, books=1, codes=3, decay=0.5, dead=0.05)
    book = VectorQuantizer(cfg).train()
    book.set_codebook(torch.tensor([[0.0, 0.0], [1.0, 1.0], [100.0, 100.0]]))
    x = torch.rand(1, 50, 2)
    for step in range(6):
        book(x, torch.Generator().manual_seed(step))
    assert book.codebook.abs().max() < 2
    assert len(book.eval()(x).codes.unique()) == 3


def test_warm_up_passes_everything_and_then_the_books_start():
    quantizer = ResidualVQ(QuantizeConfig(width=3, books=2, codes=8, warmup=2)).train()
    x, _ = clusters()
    for _ in range(2):
        values, codes, _ = quantizer(x, torch.Generator())
        assert values is x and codes is None
    assert quantizer(x, torch.Generator()).codes.shape == (1, 2, 160)     # all books in the step that starts them
    assert all(book.started for book in quantizer.books)


def test_dropout_uses_fewer_books_only_in_training():
    quantizer = started(QuantizeConfig(width=3, books=3, codes=8, warmup=0, dropout=1.0)).train()
    x, g = torch.randn(1, 4, 3), torch.Generator().manual_seed(0)
    assert {quantizer(x, g).codes.shape[1] for _ in range(40)} == {1, 2, 3}
    assert quantizer.eval()(x).codes.shape[1] == 3


def test_the_same_generator_gives_the_same_books():
    x, _ = clusters(spread=0.5)
    books = []
    for _ in range(2):
        quantizer = ResidualVQ(SMALL).train()
        for step in range(5):
            quantizer(x, torch.Generator().manual_seed(step))
        books.append(quantizer.state_dict())
    assert all(books[0][name].equal(books[1][name]) for name in books[0])


def test_wrong_codes_are_named():
    quantizer = started()
    with pytest.raises(InputError, match=r"0\.\.7, got 0\.\.8"):
        quantizer.lookup(torch.tensor([[[0, 8]]]))
    with pytest.raises(InputError, match="K should be at most 3, got 4"):
        quantizer.lookup(torch.zeros(1, 4, 2, dtype=torch.long))
    with pytest.raises(InputError, match=r"codes should be 0\.\.8, got -1\.\.100"):
        FSQ((3, 3)).lookup(torch.tensor([[8, 100, -1]]))
    with pytest.raises(InputError, match="codes should be whole numbers, got torch.float32"):
        FSQ((3, 3)).lookup(torch.zeros(1, 2))
    for levels in ((3.5, 3), (3, 1), (True, 3), ()):
        with pytest.raises(ConfigError, match="FSQ levels should be whole numbers of at least 2"):
            FSQ(levels)


@pytest.mark.parametrize("x, words", [(torch.full((1, 9, 3), float("nan")), "with NaN or infinity"), (torch.zeros(1, 0, 3), r"got \(0, 3\)$")])
def test_a_book_does_not_start_from_what_is_no_number(x, words):
    book = VectorQuantizer(SMALL)
    with pytest.raises(InputError, match=f"k-means needs points of finite values, .*{words}"):
        book(x)
    assert not book.started and not book.codebook.any()


@given(st.lists(st.integers(2, 7), min_size=1, max_size=3))
def test_fsq_numbers_every_combination_of_levels_once(levels):
    with torch.device("meta"):                                                    # as loading builds modules: there is nothing to load
        fsq = FSQ(levels)
    codes = torch.arange(fsq.codes)[None]
    values = fsq.lookup(codes)
    assert values.abs().max() <= 1 and len(values[0].unique(dim=0)) == fsq.codes
    inside = torch.atanh(values.double().clamp(-1 + 1e-7, 1 - 1e-7)).float()
    assert fsq(inside).codes.equal(codes)


def test_fsq_rounds_to_the_nearest_level_and_passes_gradients():
    fsq = FSQ((3,))
    x = torch.tensor([[[-9.0], [-0.3], [0.3], [9.0]]], requires_grad=True)
    values, codes, _ = fsq(x)
    assert codes.tolist() == [[0, 1, 1, 2]] and values[0, :, 0].tolist() == pytest.approx([-1, 0, 0, 1], abs=1e-6)
    values.sum().backward()
    torch.testing.assert_close(x.grad, 1 - torch.tanh(x.detach()) ** 2)
    with pytest.raises(ConfigError, match="at least 2"):
        FSQ((3, 1))


def _follow_in_one_of_two_processes(rank, meeting, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    quantizer = ResidualVQ(QuantizeConfig(width=3, books=3, codes=8, warmup=1, dropout=0.5, dead=0.2)).train()
    for step in range(12):
        g = torch.Generator().manual_seed(2 * step + rank)                # other data and other draws in each process
        quantizer(torch.randn(1, 30, 3, generator=g), g)
    results[rank] = {name: tensor.tolist() for name, tensor in quantizer.state_dict().items()}
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_keep_the_same_books(tmp_path):
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_follow_in_one_of_two_processes, (str(tmp_path / "meeting"), results), nprocs=2)
        assert results[0] == results[1] and results[0]["steps"] == 12
