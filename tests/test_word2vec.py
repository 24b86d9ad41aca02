"""textgen/word2vec.py and its parts: gradients against autograd, king - man + woman, answers and files against gensim, wrong input."""
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gencore.check import CheckpointError, ConfigError, DataError, InputError, UnknownNameError
from textgen import Word2Vec, Word2VecConfig
from textgen.negative_sampling import BLOCK, Trainer
from textgen.word2vec import chunks, sentences_of
from textgen.word_files import load_word2vec, save_word2vec
from textgen.word_tasks import analogies, pair_score, ranks, read_analogies, read_pairs, spearman


def royal_family(seed):
    """1,500 sentences in which royalty and sex of a person show in what is said of them, and in nothing else."""
    draw, sentences = random.Random(seed), []
    for _ in range(1500):
        she, royal = draw.random() < 0.5, draw.random() < 0.5
        person = {(False, False): "man", (True, False): "woman", (False, True): "king", (True, True): "queen"}[she, royal]
        place = draw.choice(["palace", "throne", "crown"] if royal else ["village", "field", "market"])
        clothes = draw.choice(["dress", "gown"] if she else ["beard", "coat"])
        sentences.append(["the", person, "was", "in", "the", place, "and", "she" if she else "he", "wore", "a", clothes])
    return sentences


def test_sentences_are_lists_of_lower_case_words():
    assert sentences_of("The cat's tail. Élan!\nIt is 3 o'clock") == [["the", "cat's", "tail"], ["élan"], ["it", "is", "o'clock"]]
    assert sentences_of("Łódź, żółw! Москва — 5÷3 œuvre") == [["łódź", "żółw"], ["москва", "œuvre"]]


def small(objective="skip-gram", seed=0, **changes):
    cfg = Word2VecConfig(**{"objective": objective, "width": 16, "min_count": 1, "epochs": 10, "sample": 0.0, "seed": seed, **changes})
    return Word2Vec.train(royal_family(seed), cfg, progress=False)


@pytest.fixture(scope="module")
def w2v():
    return small()


@pytest.mark.parametrize("objective", ["skip-gram", "cbow"])
def test_king_minus_man_plus_woman_is_queen_in_ten_of_ten_seeds(objective):
    for seed in range(10):
        assert small(objective, seed).most_similar(positive=["king", "woman"], negative=["man"])[0][0] == "queen"


@pytest.mark.parametrize("objective", ["skip-gram", "cbow"])
def test_a_step_goes_down_the_gradient_of_the_loss(objective):
    """One step at a rate too small for any limit, against autograd on the loss written pair by pair."""
    torch.manual_seed(0)
    W, V, K = 3, 50, 4
    trainer = Trainer(torch.arange(V, 0, -1), Word2VecConfig(objective, width=6, window=W, negative=K, noise=7, blocks=2))
    trainer.contexts = torch.randn(V, 6) / 3
    vectors, contexts = (t.clone().double().requires_grad_() for t in (trainer.vectors, trainer.contexts))
    around, band = torch.randint(0, V, (2, BLOCK + 2 * W)), (torch.rand(2, BLOCK, BLOCK + 2 * W) < 0.3) & (trainer.offset <= W)
    words, noise = around[:, W:W + BLOCK], torch.randint(0, V, (2, 7))

    def score(x, y):
        return F.logsigmoid((x * y).sum())

    loss = torch.zeros((), dtype=torch.double)
    for r in range(2):
        for t in range(BLOCK):
            near = [s for s in range(BLOCK + 2 * W) if band[r, t, s]]
            if objective == "skip-gram":
                for s in near:
                    loss = loss - score(vectors[words[r, t]], contexts[around[r, s]])
                for m in noise[r]:
                    loss = loss - len(near) * K / 7 * score(-vectors[words[r, t]], contexts[m])
            elif near:                                                           # each neighbour takes the whole gradient of the mean
                parts = vectors[around[r, near]]
                mean = parts.mean(0).detach() + parts.sum(0) - parts.sum(0).detach()
                loss = loss - score(mean, contexts[words[r, t]]) - sum(K / 7 * score(-mean, contexts[m]) for m in noise[r])
    loss.backward()
    before, rate = (trainer.vectors.clone(), trainer.contexts.clone()), 1e-3
    trainer.rate = rate
    getattr(trainer, objective.replace("-", "_"))(words, around, noise, band.float())
    torch.testing.assert_close((trainer.vectors - before[0]) / rate, -vectors.grad.float(), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close((trainer.contexts - before[1]) / rate, -contexts.grad.float(), atol=2e-3, rtol=1e-3)


def test_a_row_that_many_pull_at_does_not_overshoot():
    table, rows = torch.zeros(3, 2), torch.tensor([[0, 0, 0, 1]])
    trainer = Trainer(torch.ones(3, dtype=torch.long), Word2VecConfig(lr=0.025))
    parts = [(part, torch.ones(1, 2, 2), weights) for part, weights in zip(rows.split(2, 1), torch.tensor([[[50.0, 100.0]], [[50.0, 4.0]]]))]
    trainer.move(table, *parts)
    torch.testing.assert_close(table, torch.tensor([[3 / 200] * 2, [0.025] * 2, [0.0] * 2]))


def test_neighbours_stay_inside_their_sentence_and_window(monkeypatch):
    seen = set()
    monkeypatch.setattr(Trainer, "skip_gram", lambda self, words, around, noise, band: seen.update(
        (int(words[r, t]), int(around[r, s])) for r, t, s in band.nonzero().tolist()))
    trainer = Trainer(torch.ones(90, dtype=torch.long), Word2VecConfig(window=2))
    ids, owners = torch.arange(90), torch.arange(90) // 45
    for _ in range(20):
        for part in trainer.parts(ids, owners):
            trainer.step(*part, 0.1)
    assert seen == {(i, j) for i in range(90) for j in range(90) if 0 < abs(i - j) <= 2 and i // 45 == j // 45}


def test_frequent_words_are_thinned_as_the_paper_says():
    counts = torch.tensor([90_000, 9_000, 1_000])
    trainer = Trainer(counts, Word2VecConfig(sample=1e-2))
    ids = torch.repeat_interleave(torch.arange(3), counts)
    kept, owners = trainer.thinned(ids, torch.zeros_like(ids))
    share = torch.bincount(kept) / counts
    torch.testing.assert_close(share, torch.tensor([(0.01 / 0.9) ** 0.5 + 0.01 / 0.9, (0.01 / 0.09) ** 0.5 + 0.01 / 0.09, 1.0]), atol=0.02, rtol=0)
    assert len(kept) == len(owners)


def test_a_text_whose_words_are_all_thinned_out_teaches_nothing():
    for seed in range(20):
        assert len(Word2Vec.train([["the", "cat", "sat"]] * 10, Word2VecConfig(width=4, seed=seed), progress=False).words) == 3


def test_the_same_seed_gives_the_same_vectors(w2v):
    assert torch.equal(small().vectors, w2v.vectors) and not torch.equal(small(epochs=1).vectors, small(epochs=1, seed=1).vectors)


def test_answers_are_those_of_gensim(w2v, tmp_path):
    from gensim.models import KeyedVectors
    save_word2vec(w2v, tmp_path / "royal.txt")
    theirs = KeyedVectors.load_word2vec_format(tmp_path / "royal.txt")
    for plus, minus in ((["king", "woman"], ["man"]), (["palace"], []), (["he", "gown"], ["the", "coat"])):
        ours, wanted = w2v.most_similar(plus, minus, topn=5), theirs.most_similar(plus, minus, topn=5)
        assert [word for word, _ in ours] == [word for word, _ in wanted]
        np.testing.assert_allclose([score for _, score in ours], [score for _, score in wanted], atol=1e-5)
    assert abs(w2v.similarity("king", "palace") - theirs.similarity("king", "palace")) < 1e-5
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("word1\tword2\tscore\nking\tqueen\t9\nking\tman\t7\nking\tgown\t2\nhe\tbeard\t7\nshe\tbeard\t1\nking\tzebra\t5\n")
    score, wanted = pair_score(w2v, read_pairs(pairs)), theirs.evaluate_word_pairs(str(pairs), restrict_vocab=None, case_insensitive=False)
    assert (score.pairs, score.unknown) == (5, 1) and abs(score.spearman - wanted[1][0]) < 1e-6
    questions = tmp_path / "questions.txt"
    questions.write_text(": family\nman woman king queen\nking queen man woman\nman king woman zebra\nhe she man woman\n: empty\na b c d\n")
    asked = analogies(w2v, read_analogies(questions))
    section = next(s for s in theirs.evaluate_word_analogies(str(questions), case_insensitive=False)[1] if s["section"] == "family")
    assert asked == {"family": (len(section["correct"]), 3), "empty": (0, 0)}


@pytest.mark.parametrize("binary", [False, True])
def test_files_go_to_gensim_and_back(binary, w2v, tmp_path):
    from gensim.models import KeyedVectors
    save_word2vec(w2v, tmp_path / "ours", binary=binary)
    theirs = KeyedVectors.load_word2vec_format(tmp_path / "ours", binary=binary)
    assert theirs.index_to_key == w2v.words
    np.testing.assert_array_equal(theirs.vectors, w2v.vectors.numpy())
    theirs.save_word2vec_format(tmp_path / "theirs", binary=binary)
    back = load_word2vec(tmp_path / "theirs", binary=binary)
    assert back.words == w2v.words and torch.equal(back.vectors, w2v.vectors)


def test_a_binary_file_of_the_original_tool_has_line_ends(tmp_path):
    rows = np.arange(6, dtype="<f4").reshape(2, 3)
    (tmp_path / "c.bin").write_bytes(b"2 3\n" + b"".join(word + b" " + row.tobytes() + b"\n" for word, row in zip((b"caf\xc3\xa9", b"tea"), rows)))
    read = load_word2vec(tmp_path / "c.bin", binary=True)
    assert read.words == ["café", "tea"] and torch.equal(read.vectors, torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("content, binary, words", [
    (b"", False, 'first line should be "words width"'), (b"two 3\na 1 2 3\n", False, 'first line should be "words width"'),
    (b"9 300\na 1 2 3\n", False, "promises 9 words of 300 numbers"), (b"2 2\na 1 2\nb 1\n", False, "line 3 should be a word and 2 numbers, got 1"),
    (b"2 2\na 1 2\nb 1 x\n", False, "line 3 should be"), (b"3 1\na 1\nb 2\n\n\n\n\n", False, "line 4 should be"),
    (b"2 1\na 1\nb nan\n", False, 'the vector of "b" has numbers that are not finite'), (b"2 1\na 1\na 2\n", False, '"a" is there twice'),
    (b"2 1\n\xff 1\nb 2\n", False, "not UTF-8"), (b"2 1\na \0\0\0\0b \0\0", True, "broken off or not binary at word 2 of 2"),
    (b"1 2\n" + b"a" * 2000, True, "broken off or not binary at word 1"), (b"99999999999 300\n", True, "promises 99,999,999,999 words")])
def test_a_broken_file_is_refused_with_the_place(content, binary, words, tmp_path):
    (tmp_path / "vectors").write_bytes(content)
    with pytest.raises(DataError, match=words):
        load_word2vec(tmp_path / "vectors", binary=binary)


def test_a_folder_gives_the_same_words_and_vectors(w2v, tmp_path):
    w2v.save_pretrained(tmp_path / "royal")
    back = Word2Vec.from_pretrained(tmp_path / "royal")
    assert back.words == w2v.words and torch.equal(back.vectors, w2v.vectors) and torch.equal(back.counts, w2v.counts) and back.cfg == w2v.cfg
    config = json.loads((tmp_path / "royal" / "config.json").read_text())
    (tmp_path / "royal" / "digests.json").unlink()
    for wrong in ({name: value for name, value in config.items() if name != "training"}, config | {"words": [["a"], *config["words"][1:]]}):
        (tmp_path / "royal" / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match="not the configuration of word vectors"):
            Word2Vec.from_pretrained(tmp_path / "royal")
    w2v.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert Word2Vec.from_pretrained(tmp_path / "half").most_similar("king", topn=1)[0][0] == w2v.most_similar("king", topn=1)[0][0]
    with pytest.raises(CheckpointError, match="novelist holds a causal language model: open it with textgen.CausalLM"):
        Word2Vec.from_pretrained("novelist")


def test_the_shipped_vectors_know_days_meals_and_queens():
    shipped = Word2Vec.from_pretrained("word-vectors")
    assert shipped.vectors.shape == (15606, 100) and shipped.words[:3] == ["the", "and", "to"]
    assert shipped.most_similar(["king", "woman"], ["man"], topn=1)[0] == ("queen", pytest.approx(0.6424, abs=1e-3))
    near = {word: {name for name, _ in shipped.most_similar(word, topn=5)} for word in ("monday", "breakfast", "anger")}
    assert len(near["monday"] & {"tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"}) >= 4
    assert {"dinner", "supper"} <= near["breakfast"] and "rage" in near["anger"]


def test_a_picture_of_the_space_is_drawn(w2v, tmp_path):
    from PIL import Image
    with Image.open(w2v.draw(tmp_path / "space.png", ["king", "queen", "man", "woman", "palace"])) as picture:
        assert min(picture.size) > 400 and len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_ranks_share_the_middle_of_ties():
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 8.0, 7.0])) == pytest.approx(-1.0)


def test_long_texts_come_in_chunks_that_lose_nothing(monkeypatch):
    monkeypatch.setattr("textgen.word2vec.CHUNK", 10)
    sentences = [["a", "b", "zebra"]] * 11
    parts = list(chunks(sentences, {"a": 0, "b": 1}))
    assert len(parts) == 3 and torch.cat([ids for ids, _ in parts]).tolist() == [0, 1] * 11
    assert torch.cat([owners for _, owners in parts]).tolist() == [i for i in range(11) for _ in "ab"]


@pytest.mark.parametrize("call, error, words", [
    (lambda w: w.most_similar("kinq"), UnknownNameError, '"kinq" is not among the .* words .did you mean "king"'),
    (lambda w: w.most_similar(), InputError, "needs a word"),
    (lambda w: w.most_similar("king", topn=0), InputError, "topn should be a whole number of at least 1"),
    (lambda w: w.similarity("king", "zebra"), UnknownNameError, '"zebra" is not among'),
    (lambda w: Word2Vec.train(iter([["a"]])), InputError, "gone through several times"),
    (lambda w: Word2Vec.train(["the king"]), DataError, "should be a list of words, got the text 'the king'"),
    (lambda w: Word2Vec.train([["a", "b"]]), DataError, "no two words occur 5 times in these 2 words"),
    (lambda w: Word2Vec.train([]), DataError, "no two words occur"),
    (lambda w: Word2VecConfig(window=0), ConfigError, "window should be between 1 and .*, got 0"),
    (lambda w: Word2VecConfig("skipgram"), ConfigError, "objective should be one of"),
    (lambda w: Word2VecConfig(lr=0.0), ConfigError, "lr should fall to min_lr"),
    (lambda w: Word2VecConfig(lr=float("nan")), ConfigError, "lr should be float, got nan"),
    (lambda w: w.draw("never.png", ["king"]), InputError, "a picture takes two words or more, in a list, got"),
    (lambda w: w.draw("never.xyz", ["king", "queen"]), InputError, "should end in .png, .svg or .pdf, got 'never.xyz'"),
    (lambda w: w.draw("never/never.png", ["king", "queen"]), InputError, "there is no folder never, make it first"),
    (lambda w: load_word2vec("gone.txt"), DataError, "no file gone.txt"),
    (lambda w: Word2Vec(["a", "a"], torch.zeros(2, 3)), InputError, "no word twice"),
    (lambda w: save_word2vec(w, "gone/w.txt"), InputError, "can't write gone/w.txt: there is no folder gone, make it first"),
    (lambda w: save_word2vec(Word2Vec(["a b", "c"], torch.zeros(2, 3)), "never"), InputError, "can't hold 'a b'"),
    (lambda w: pair_score(w, [("king", "zebra", 1.0)]), DataError, "0 of 1 pairs")])
def test_wrong_input_is_answered_with_one_sentence(call, error, words, w2v):
    with pytest.raises(error, match=words):
        call(w2v)


def test_marks_belong_to_their_letters():
    assert sentences_of("हिन्दी عَرَبِيّ e\u0301te\u0301 don\u2019t") == [["हिन्दी", "عَرَبِيّ", "été", "don't"]]


def test_words_of_vectors_with_capitals_are_met_as_gensim_meets_them(tmp_path):
    from gensim.models import KeyedVectors
    words = ["Athens", "Greece", "Paris", "France", "athens", "Oslo", "Norway"]
    torch.manual_seed(0)
    base = torch.randn(2, 8)
    vectors = torch.stack([base[0] + 1, base[0] - 1, base[1] + 1, base[1] - 1, -base[0], *torch.randn(2, 8)])
    ours = Word2Vec(words, vectors)
    save_word2vec(ours, tmp_path / "v.txt")
    (tmp_path / "q.txt").write_text(": capitals\nAthens Greece Paris France\n")
    theirs = KeyedVectors.load_word2vec_format(str(tmp_path / "v.txt"))
    assert theirs.evaluate_word_analogies(str(tmp_path / "q.txt"))[0] == 1.0
    assert analogies(ours, read_analogies(tmp_path / "q.txt")) == {"capitals": (1, 1)}
    assert analogies(ours, {"as given": [("Athens", "Greece", "Paris", "France")]}) == {"as given": (1, 1)}
    twice = Word2Vec([*words, "FRANCE", "GREECE"], torch.cat((vectors, vectors[3:4] * 1.01, vectors[1:2] + 1e-3)))      # other spellings
    save_word2vec(twice, tmp_path / "w.txt")
    theirs_too = KeyedVectors.load_word2vec_format(str(tmp_path / "w.txt"))
    assert theirs_too.evaluate_word_analogies(str(tmp_path / "q.txt"))[0] == 1.0
    assert analogies(twice, read_analogies(tmp_path / "q.txt")) == {"capitals": (1, 1)}
    (tmp_path / "p.tsv").write_text("athens\tgreece\t9\nparis\tfrance\t3\noslo\tNorway\t1\n")
    wanted = theirs.evaluate_word_pairs(str(tmp_path / "p.tsv"))[1][0]
    assert pair_score(ours, read_pairs(tmp_path / "p.tsv")).spearman == pytest.approx(wanted, abs=1e-5)


def test_words_that_gensim_writes_with_other_white_space_are_kept(tmp_path):
    from gensim.models import KeyedVectors
    ours = Word2Vec(["a\u00a0b", "x\u2028y"], torch.eye(2))
    for binary in (False, True):
        save_word2vec(ours, tmp_path / "v", binary=binary)
        assert load_word2vec(tmp_path / "v", binary=binary).words == ours.words
        assert KeyedVectors.load_word2vec_format(str(tmp_path / "v"), binary=binary).index_to_key == ours.words


@pytest.mark.parametrize("call, words", [
    (lambda w, p: Word2Vec.train([iter(["a", "b"])] * 3), "read several times, got an iterator"),
    (lambda w, p: Word2Vec.train(None), "gone through several"),
    (lambda w, p: w.draw(p, "king"), "two words or more, in a list, got 'king'"), (lambda w, p: w.most_similar(5), "a word or a list of them, got 5"),
    (lambda w, p: w.most_similar("a", topn=1.5), "topn should be"), (lambda w, p: w.most_similar("a", among=0), "among should be")])
def test_what_would_go_wrong_silently_is_named(call, words, tmp_path):
    with pytest.raises((DataError, InputError), match=words):
        call(Word2Vec(["a", "b", "c"], torch.eye(3)), tmp_path / "p.png")
