"""The token model and TextToSpeech: targets by hand, one word alone equals one in a list, folders, recipes, wrong requests."""
import pytest
import torch

import gencore
from audiogen import Codec, TextToSpeech
from audiogen.codec import CodecConfig
from audiogen.data import Clip, CodeBatches, code_batches, short_enough
from audiogen.lm import SpeechSettings, TokenModel, TokenModelConfig, padded_steps, speak, token_loss
from audiogen.mel import LogMel
from audiogen.speech import SpeechConfig, speech_files
from gencore.attention import AttentionConfig
from gencore.check import CheckpointError, ConfigError, DataError, InputError, UnknownNameError
from gencore.checkpoint import save_folder
from gencore.layers import MLPConfig
from gencore.positions import RotaryConfig
from gencore.quantize import QuantizeConfig
from gencore.transformer import TransformerConfig

TRANSFORMER = TransformerConfig(width=32, layers=2, attention=AttentionConfig(heads=2), rotary=RotaryConfig(), mlp=MLPConfig(width=64))
MODEL = TokenModelConfig(words=("yes", "no", "left turn", "turn"), voices=("ann", "bob"), books=2, codes=8, longest=12, weights=(2.0, 1.0),
                         transformer=TRANSFORMER)
GREEDY = SpeechSettings(guidance=1.0, temperature=0.0)


@pytest.fixture
def speaker():
    torch.manual_seed(0)
    codec = Codec(CodecConfig(width=16, encoder_blocks=1, decoder_blocks=1, quantize=QuantizeConfig(width=8, books=2, codes=8)))
    for book in codec.quantizer.books:
        book.set_codebook(torch.randn(8, 8))
    return TextToSpeech(SpeechConfig(MODEL), TokenModel(MODEL), codec)


@pytest.fixture(scope="module")
def learned():
    """A model that has overfitted eight clips: every word in every voice, with codes (2,T) of different lengths."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    codes = [torch.randint(8, (2, 3 + i), generator=g) for i in range(8)]
    words, voices = [i // 2 for i in range(8)], [i % 2 for i in range(8)]
    data, model = CodeBatches(codes, words, voices, batch=8, filler=8), TokenModel(MODEL).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(250):
        loss, targets = token_loss(model, data.batch(step), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (loss / targets).backward()
        optimizer.step()
    return model.eval(), codes, torch.tensor(words), torch.tensor(voices)


def test_targets_are_the_delayed_codes_and_one_end():
    model = TokenModel(MODEL)
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6]], [[7, 0, 0], [7, 0, 0]]])
    steps, weights = padded_steps(model, codes, torch.tensor([3, 1]))
    assert steps.tolist() == [[[8, 1, 2, 3, 8, 8], [8, 8, 4, 5, 6, 8]], [[8, 7, 8, 8, 8, 8], [8, 8, 7, 8, 8, 8]]]
    assert weights.tolist() == [[[2, 2, 2, 2, 0], [0, 1, 1, 1, 0]], [[2, 2, 0, 0, 0], [0, 1, 0, 0, 0]]]


def test_only_the_first_book_can_end():
    model = TokenModel(MODEL)
    steps = torch.full((1, 2, 3), 8)
    probabilities = model(torch.tensor([0]), torch.tensor([1]), steps).softmax(-1)
    assert probabilities[:, 1, :, 8].eq(0).all() and probabilities[:, 0, :, 8].gt(0).all()


def test_the_loss_of_padded_clips_is_the_sum_of_single_ones():
    torch.manual_seed(0)
    model, g = TokenModel(MODEL).eval(), torch.Generator()
    codes = [torch.randint(8, (2, n)) for n in (3, 7, 5)]
    data = CodeBatches(codes, [0, 1, 2], [0, 1, 0], batch=3, filler=8)
    whole, targets = token_loss(model, data.batch(0), g)
    single = [token_loss(model, {"codes": c[None], "lengths": torch.tensor([c.shape[1]]), "words": torch.tensor([w]),
                                 "voices": torch.tensor([v])}, g) for c, w, v in zip(codes, (0, 1, 2), (0, 1, 0))]
    torch.testing.assert_close(whole, sum(loss for loss, _ in single))
    assert targets == sum(n for _, n in single)


def test_overfitted_clips_are_spoken_to_the_code(learned):
    model, codes, words, voices = learned
    for settings in (GREEDY, SpeechSettings(guidance=2.0, temperature=0.0)):
        for made, real in zip(speak(model, words, voices, settings, seed=0), codes):
            assert made.equal(real)


def test_a_word_alone_is_the_word_in_a_list(learned):
    model, _, words, voices = learned
    settings = SpeechSettings(guidance=1.5, temperature=1.5, top_k=None)
    together = speak(model, words, voices, settings, seed=10)
    for i in range(len(words)):
        assert speak(model, words[i:i + 1], voices[i:i + 1], settings, seed=10 + i)[0].equal(together[i])


def test_clips_end_at_the_longest_and_never_before_one_frame(speaker):
    words = torch.zeros(40, dtype=torch.long)
    for clip in speak(speaker.model, words, words, SpeechSettings(temperature=5.0, top_k=None), seed=0):
        assert 1 <= clip.shape[1] <= 12 and clip.max() < 8


def test_batches_take_clips_of_like_length_and_each_once():
    codes = [torch.full((2, 1 + i % 9), i % 8) for i in range(64)]
    data = CodeBatches(codes, range(64), [0] * 64, batch=4, seed=1, filler=8)
    seen = torch.cat([data.batch(step)["words"] for step in range(16)])
    assert seen.sort().values.tolist() == list(range(64))
    assert data.batch(17)["codes"].equal(data.batch(17)["codes"]) and not data.batch(1)["words"].equal(data.batch(17)["words"])
    both = torch.cat([data.batch(5, rank, 2)["words"] for rank in (0, 1)])
    assert both.equal(data.batch(5)["words"])


def test_the_same_seed_is_the_same_sound_and_another_is_not(speaker):
    one, two, other = (speaker("yes", "bob", seed=seed).waveform for seed in (1, 1, 2))
    assert one.equal(two) and not (one.shape == other.shape and one.equal(other))
    assert speaker("yes", seed=1).recipe is None                          # these weights lie in no folder yet


def test_words_are_told_apart_by_letters_and_found_without_the_signs_around_them(speaker):
    for words in (("Hello", "hello!"), ("?!", "no")):
        with pytest.raises(ConfigError, match="words should differ in more than small letters and punctuation, and have letters"):
            TokenModelConfig(words, ("me",))
    word = speaker.words[0]
    assert speaker.parse(f"- '{word}' - {word.upper()}!") == [word, word]


def test_short_clips_are_coded_and_the_longest_keep_their_end():
    cfg = TokenModelConfig(("a",), ("me",), books=2, codes=16, longest=8, weights=(1.0, 1.0))
    codec = Codec(CodecConfig(hop=64, window=128, mels=16, width=16, encoder_blocks=1, decoder_blocks=1, quantize=QuantizeConfig(books=2, codes=16)))
    clips = [Clip(torch.randn(n), "a", "me") for n in (40, 6 * 64 - 30, 7 * 64, 9 * 64)]
    data = code_batches(codec, clips, cfg, batch=4, versions=4)
    assert len(data.lengths) == 8 and data.lengths.max() < 8 and data.lengths.min() == 1            # two of them fit at their slowest
    assert len(code_batches(codec, clips, cfg, batch=3).lengths) == 3
    with pytest.raises(DataError, match="2 of 4 clips last .* with 4 versions of each they are fewer than a batch of 9: give more"):
        short_enough(clips, cfg, codec.cfg, batch=9, versions=4)


def test_phrases_win_over_words_and_silence_lies_between(speaker):
    assert speaker.parse("Left turn, NO! turn yes.") == ["left turn", "no", "turn", "yes"]
    parts = [speaker("yes", seed=5).waveform, speaker("no", seed=6).waveform]
    gap = torch.zeros(1, 640)
    assert speaker("yes, no", seed=5).waveform.equal(torch.cat([parts[0], gap, parts[1]], 1))


@pytest.mark.parametrize("request_, error, message", [
    (lambda s: s("yess"), InputError, r'can\'t say "yess" \(did you mean "yes"\?\): the words it knows are yes, no, left turn, turn'),
    (lambda s: s("left"), InputError, '"left"'),
    (lambda s: s("  "), InputError, "text is empty"),
    (lambda s: s(7), InputError, "got int"),
    (lambda s: s("yes \ud800"), InputError, "half a character"),
    (lambda s: s("no " * 65), InputError, "65 words, at most 64"),
    (lambda s: s("no", "anne"), UnknownNameError, r'unknown voice "anne" \(did you mean "ann"\?\): known are ann, bob'),
    (lambda s: s("no", seed=1.5), InputError, "seed should be a whole number.*, got 1.5"),
    (lambda s: s("no", guidance=-1), InputError, "guidance should be between"),
    (lambda s: s("no", top_k=0), InputError, "top_k"),
    *((lambda s, seed=seed: s("no", seed=seed), InputError, "seed should be a whole number") for seed in (-1, 2 ** 70, True, "1")),
    (lambda s: s.to(torch.bfloat16), InputError, 'expected a device such as "cpu"'),
])
def test_wrong_requests_are_named(speaker, request_, error, message):
    with pytest.raises(error, match=message):
        request_(speaker)


def test_a_saved_voice_opens_speaks_and_replays(speaker, tmp_path):
    speaker.save_pretrained(tmp_path / "voice")
    again = TextToSpeech.from_pretrained(tmp_path / "voice")
    sound = again("yes no", "bob", seed=4, temperature=0.9)
    assert sound.recipe.inputs == {"text": "yes no", "voice": "bob"} and sound.recipe.settings["temperature"] == 0.9
    path = sound.save(tmp_path / "a.wav")
    assert gencore.replay(path).waveform.equal(sound.waveform)


def test_a_voice_from_a_relative_folder_replays_from_elsewhere(speaker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    speaker = TextToSpeech(speaker.cfg, speaker.model, speaker.codec)
    speaker.save_pretrained("voice")
    opened = TextToSpeech.from_pretrained("voice")
    assert opened.to("cpu") is opened and opened.to(torch.device("cpu")).codec is opened.codec
    clips = [speaker("yes", seed=1), opened("yes", seed=1)]                # the one that was saved speaks with the rounded weights, too
    for i, clip in enumerate(clips):
        clip.save(f"{i}.wav")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for i, clip in enumerate(clips):
        assert gencore.replay(f"../{i}.wav").waveform.equal(clip.waveform)


def test_a_voice_refuses_the_codes_of_another_codec(speaker, tmp_path):
    files = speech_files(speaker.cfg, speaker.model, speaker.codec)
    save_folder(tmp_path / "voice", {**files, "config.json": files["config.json"] | {"codec_digest": "0" * 16}})
    with pytest.raises(CheckpointError, match="speaks the codes of a codec with digest 0000000000000000"):
        TextToSpeech.from_pretrained(tmp_path / "voice")
    save_folder(tmp_path / "voice", {**files, "config.json": files["config.json"] | {"codec": "./../codec"}})
    with pytest.raises(CheckpointError, match="outside the folder"):
        TextToSpeech.from_pretrained(tmp_path / "voice")


def test_unknown_models_are_named():
    with pytest.raises(UnknownNameError, match='unknown audiogen model "speeker"'):
        TextToSpeech.from_pretrained("speeker")


@pytest.fixture(scope="module")
def shipped():
    return TextToSpeech.from_pretrained("speaker")


@pytest.mark.parametrize("word, voice, frames, first, second", [
    ("seven", "george", 44, [129, 29, 129, 129, 129, 154, 199, 248, 110, 110, 110, 248, 248, 168, 168, 168],
     [52, 222, 147, 189, 189, 189, 189, 189]),
    ("two", "theo", 16, [94, 118, 94, 66, 212, 212, 212, 241, 241, 93, 93, 93, 140, 103, 103, 81], [193, 187, 179, 63, 69, 253, 242, 63]),
])
def test_the_shipped_speaker_says_what_it_said(shipped, word, voice, frames, first, second):
    ids = torch.tensor([shipped.words.index(word)]), torch.tensor([shipped.voices.index(voice)])
    codes = speak(shipped.model, *ids, SpeechSettings(guidance=1.5, temperature=0.0), seed=0)[0]
    assert codes.shape == (4, frames) and codes[0, :16].tolist() == first and codes[1, :8].tolist() == second


def test_the_shipped_codec_rebuilds_the_speaker_s_own_clip(shipped):
    codec, mel = Codec.from_pretrained("codec"), LogMel(8000, 40, 256, 80, floor=1e-3)
    clip = shipped("seven", voice="george", seed=0).waveform
    rebuilt = codec.decode(codec.encode(clip[None]))[0]
    assert clip.shape == (1, 4224) and (mel(clip) - mel(rebuilt)).abs().mean() < 0.26          # 0.223 when it was shipped


def test_the_shipped_speaker_reads_digits_and_names_its_voices(shipped):
    assert shipped.parse("4, Two 19") == ["four", "two", "one", "nine"]
    assert shipped.voices == ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    with pytest.raises(UnknownNameError, match=r'"georg" \(did you mean "george"\?\)'):
        shipped("seven", "georg")
