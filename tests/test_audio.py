"""Audio values, files, mel bands and loudness against closed forms and torchaudio."""
import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from audiogen import Audio
from audiogen.audio import interpolated, level, loudness
from audiogen.data import Windows, read_clips
from audiogen.mel import LogMel, mel_matrix, spectrum
from gencore.check import DataError, InputError
from gencore.recipe import Recipe, read


def tone(hz=440.0, seconds=0.5, rate=8000, channels=1):
    wave = 0.5 * torch.sin(2 * torch.pi * hz * torch.arange(int(seconds * rate)) / rate)
    return Audio(wave.expand(channels, -1), rate)


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_files_come_back_to_the_16th_bit_with_their_recipe(tmp_path, ending):
    recipe = Recipe.made("audio", "speaker", "0" * 16, inputs={"text": "seven"}, seed=3, settings={"guidance": 3.0})
    sound = Audio(tone(channels=2).waveform, 8000, recipe)
    again = Audio.load(sound.save(tmp_path / f"a.{ending}"))
    assert again.sample_rate == 8000 and again.recipe == recipe
    assert (again.waveform - sound.waveform).abs().max() <= 0.5 / 32768
    assert again.save(tmp_path / f"b.{ending}").read_bytes() == (tmp_path / f"a.{ending}").read_bytes()


def test_a_wav_holds_its_recipe_where_gencore_reads_it(tmp_path):
    recipe = Recipe.made("audio", "speaker", "0" * 16, inputs={"text": "zwölf"}, seed=3, settings={})
    assert read(Audio(tone().waveform, 8000, recipe).save(tmp_path / "a.wav")) == recipe


def test_a_long_recipe_stays_in_a_wav_and_is_told_of_where_a_flac_takes_none(tmp_path):
    recipe = Recipe.made("audio", "speaker", "0" * 16, inputs={"text": "zwölf " * 9000}, seed=3, settings={})
    sound = Audio(tone().waveform, 8000, recipe)
    again = Audio.load(sound.save(tmp_path / "a.wav"))
    assert again.recipe == recipe == read(again.save(tmp_path / "b.wav")) and soundfile.read(tmp_path / "b.wav")[1] == 8000
    with open(tmp_path / "a.wav", "rb") as file:
        assert Audio.load(file).recipe == recipe
    endless = Audio(tone().waveform, 8000, replace(recipe, inputs={"text": "x" * 200_000}))
    if Audio.load(io.BytesIO(endless.encoded("FLAC"))).recipe is None:
        with pytest.warns(UserWarning, match="recipe has .* bytes, more than its FLAC took: save it as .wav"):
            endless.save(tmp_path / "c.flac")


def test_arrays_of_any_order_are_read_and_what_no_file_can_say_is_refused(tmp_path):
    wave = tone().waveform[0].numpy()
    assert Audio(wave[::-1], 8000).waveform[0].flip(0).equal(torch.from_numpy(wave)) and Audio(wave.astype(">f4"), 8000).waveform[0].equal(
        torch.from_numpy(wave))
    with pytest.raises(InputError, match="not finite"):
        Audio(torch.tensor([1e300], dtype=torch.float64), 8000)
    with pytest.raises(InputError, match="sample_rate"):
        Audio(wave, 2 ** 40)
    for wrong in (Audio(wave, 1_000_000), Audio(torch.zeros(1, 0), 8000)):
        with pytest.raises(InputError, match="a FLAC has samples, at most 655,350 a second.*save it as .wav"):
            wrong.save(tmp_path / "a.flac")
    assert tone().draw(tmp_path / "spectrum").is_file()


def test_full_scale_is_clipped_not_wrapped(tmp_path):
    loud = Audio(torch.tensor([[2.0, 1.0, -1.0, -3.0]]), 8000)
    assert Audio.load(loud.save(tmp_path / "a.wav")).waveform.tolist() == [[pytest.approx(v, abs=1e-4) for v in (1, 1, -1, -1)]]


def test_resampling_keeps_the_tone_and_the_length():
    sound = tone(440, rate=8000).resample(16000)
    assert sound.sample_rate == 16000 and sound.waveform.shape == (1, 8000)
    assert torch.fft.rfft(sound.waveform[0]).abs().argmax() == 220         # bins of 2 Hz
    assert tone().resample(8000).waveform.equal(tone().waveform)


def test_the_player_carries_the_same_samples():
    html = tone()._repr_html_()
    data = base64.b64decode(re.search(r"base64,([^\"]+)\"", html)[1])
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == 8000 and np.abs(samples - tone().waveform[0].numpy()).max() < 1e-4


def test_mono_is_the_mean_and_seconds_are_counted():
    sound = Audio(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 4)
    assert sound.mono().waveform.tolist() == [[0.5, 0.0]] and sound.seconds == 0.5
    assert repr(tone()) == "Audio(0.50 s, 8000 Hz, 1 channel)"


def test_a_spectrogram_is_drawn(tmp_path):
    assert tone().draw(tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("bands, n_fft, rate", [(40, 512, 8000), (64, 1024, 16000)])
def test_mel_matrix_equals_torchaudio(bands, n_fft, rate):
    from torchaudio.functional import melscale_fbanks
    theirs = melscale_fbanks(n_fft // 2 + 1, 0.0, rate / 2, bands, rate)
    torch.testing.assert_close(mel_matrix(bands, n_fft, rate), theirs, atol=1e-5, rtol=1e-4)


def test_mel_frames_are_one_per_hop_and_peak_at_the_tone():
    mel = LogMel(8000, 64, 512, 128)(tone(1000).waveform)
    assert mel.shape == (1, 64, 4000 // 128)
    edges = 2595 * np.log10(1 + 1000 / 700) / (2595 * np.log10(1 + 4000 / 700)) * 65 - 1    # the band around 1000 Hz
    assert abs(int(mel[0, :, 15].argmax()) - edges) < 1


def test_the_floor_is_the_lowest_mel():
    assert LogMel(8000, 20, 256, 80, floor=1e-3)(torch.zeros(1, 800)).eq(np.log(np.float32(1e-3))).all()


def test_a_frame_of_a_spectrum_is_centred_on_its_hop():
    click = torch.zeros(1, 1024)
    click[0, 3 * 128 + 64] = 1
    energy = spectrum(click, 512, 128, torch.hann_window(512)).abs().square().sum(1)[0]
    assert energy.argmax() == 3 and torch.allclose(energy[2], energy[4], rtol=1e-3)


def test_loudness_counts_active_frames_only():
    sound = torch.cat([torch.full((800,), 0.2), torch.zeros(8000)])
    assert loudness(sound, 8000) == pytest.approx(0.2)
    assert loudness(level(sound, 8000, 0.1), 8000) == pytest.approx(0.1)
    click = torch.zeros(800)
    click[:80] = torch.linspace(0, 0.01, 80)
    click[10] = 0.9
    assert level(click, 8000, 0.5).abs().max() <= 0.9500001                # the peak is held, however quiet the rest
    assert level(torch.zeros(80), 8000).equal(torch.zeros(80))


@pytest.mark.parametrize("make, message", [
    (lambda: Audio(torch.zeros(1, 5, dtype=torch.int16), 8000), "divide 16-bit samples"),
    (lambda: Audio(torch.zeros(2, 1, 5), 8000), "expected 2 dimensions"),
    (lambda: Audio(torch.zeros(4000, 2), 8000), "transpose"),
    (lambda: Audio(torch.tensor([[float("nan")]]), 8000), "not finite"),
    (lambda: Audio(torch.zeros(1, 5), 8000.0), "sample_rate .Hz. should be a whole number"),
    (lambda: tone().save("a.mp3"), '".mp3"'),
    (lambda: tone().save("gone/a.wav"), "can't write gone/a.wav: there is no folder gone, make it first"),
    (lambda: tone().draw("gone/a.png"), "can't write gone/a.png: there is no folder gone"),
])
def test_wrong_sounds_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_unreadable_and_over_long_files_are_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"not sound")
    with pytest.raises(DataError, match="a.wav is not sound that can be read"):
        Audio.load(tmp_path / "a.wav")
    with pytest.raises(DataError, match="b.wav does not exist"):
        Audio.load(tmp_path / "b.wav")
    with pytest.raises(DataError, match="is a folder: give the path of a sound file"):
        Audio.load(tmp_path)
    Audio(torch.zeros(1, 601 * 10), 10).save(tmp_path / "c.wav")
    with pytest.raises(DataError, match="601 s long, at most 600"):
        Audio.load(tmp_path / "c.wav")


def wav_bytes(samples=800):
    file = io.BytesIO()
    soundfile.write(file, np.linspace(-0.5, 0.5, samples), 8000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def with_sizes(raw, size):
    at = raw.index(b"data") + 4
    return raw[:4] + size + raw[8:at] + size + raw[at + 4:]


@pytest.mark.parametrize("keep", [-1, -700, 60])
def test_a_wav_that_is_cut_off_is_named_wherever_it_is_read(tmp_path, keep):
    (tmp_path / "cut.wav").write_bytes(wav_bytes()[:keep])
    (tmp_path / "metadata.csv").write_text("file_name,text,speaker\ncut.wav,hm,me\n")
    for read_it in (lambda: Audio.load(tmp_path / "cut.wav"), lambda: Audio.load(io.BytesIO(wav_bytes()[:keep])), lambda: read_clips(tmp_path, 8000)):
        with pytest.raises(DataError, match="is cut off: its header says 1,600 bytes of samples"):
            read_it()


@pytest.mark.parametrize("change", [
    lambda raw: raw + b"LIST\x04\0\0\0abcd", lambda raw: raw + b"anything", lambda raw: with_sizes(raw, b"\0" * 4),
    lambda raw: with_sizes(raw, b"\xff" * 4), lambda raw: with_sizes(raw, b"\0\xf0\xff\x7f"),
    lambda raw: raw[:12] + b"junk\x03\0\0\0abc\0" + raw[12:],
])
def test_streams_and_chunks_around_the_samples_are_no_damage(tmp_path, change):
    (tmp_path / "a.wav").write_bytes(change(wav_bytes()))
    assert Audio.load(tmp_path / "a.wav").waveform.equal(Audio.load(io.BytesIO(wav_bytes())).waveform)


@pytest.mark.parametrize("kind", ["FLAC", "MP3"])
def test_other_files_that_are_cut_off_are_named(kind):
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, 20000), 8000, format=kind)
    assert Audio.load(io.BytesIO(file.getvalue())).waveform.shape[1] >= 20000
    with pytest.raises(DataError, match="cut off|not sound that can be read"):
        Audio.load(io.BytesIO(file.getvalue()[:len(file.getvalue()) // 2]))


@pytest.mark.parametrize("rate", [0, -1, "8000", 2.5, True, None, 10 ** 9])
def test_rates_that_can_not_be_are_refused(rate):
    with pytest.raises(InputError, match="sample_rate .Hz. should be a whole number between 1 and 1000000, got"):
        tone().resample(rate)


@pytest.mark.parametrize("old, new, samples", [(441, 80, 4410), (80, 441, 800), (2, 3, 1001), (2, 1, 1)])
def test_interpolation_equals_torchaudio(old, new, samples):
    from torchaudio.functional import resample
    waveform = torch.randn(2, samples)
    torch.testing.assert_close(interpolated(waveform, old, new), resample(waveform, old, new), rtol=0, atol=1e-4)


def test_rates_without_a_common_measure_are_resampled():
    sound = tone(440, 1.0, 44101).resample(8000)
    assert sound.waveform.shape == (1, 8000) and (sound.waveform - tone(440, 1.0).waveform)[:, 100:-100].abs().max() < 1e-3
    assert Audio(torch.zeros(1, 0), 44100).resample(8000).waveform.shape == (1, 0)


@pytest.mark.parametrize("length", [0, 5, 127])
def test_a_clip_too_short_to_draw_says_so(tmp_path, length):
    with pytest.raises(InputError, match=f"too short for a spectrogram: expected 128 samples or more, got {length}"):
        Audio(torch.zeros(1, length), 8000).draw(tmp_path / "a.png")
    assert Audio(torch.zeros(1, 128), 8000).draw(tmp_path / "b.png").is_file()


def test_clips_come_from_an_audiofolder_at_one_rate_and_loudness(tmp_path):
    for name, rate in (("a", 8000), ("b", 16000)):
        tone(rate=rate).save(tmp_path / f"{name}.wav")
    lines = ['{"file_name": "a.wav", "text": "hello", "speaker": "me"}', '{"file_name": "b.wav", "text": "there", "speaker": "you"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    clips = read_clips(tmp_path, 8000)
    assert [(clip.text, clip.speaker, len(clip.waveform)) for clip in clips] == [("hello", "me", 4000), ("there", "you", 4000)]
    assert all(loudness(clip.waveform, 8000) == pytest.approx(0.1, rel=0.02) for clip in clips)
    (tmp_path / "metadata.jsonl").write_text("\n".join(line.replace("speaker", "who") for line in lines))
    with pytest.raises(DataError, match="text and speaker"):
        read_clips(tmp_path, 8000)
    for missing in ("text", "speaker"):
        (tmp_path / "metadata.jsonl").write_text("\n".join((lines[0], lines[1].replace(f'"{missing}"', '"other"'))))
        with pytest.raises(DataError, match=rf"b\.wav has no {missing}: give it one"):
            read_clips(tmp_path, 8000)


def test_windows_are_a_function_of_the_step(tmp_path):
    tone(seconds=0.1).save(tmp_path / "a.wav")
    (tmp_path / "metadata.csv").write_text("file_name,text,speaker\na.wav,hm,me\n")
    data = Windows(read_clips(tmp_path, 8000), 1024, batch=4)
    assert data.batch(3)["waveform"].shape == (4, 1, 1024) and data.batch(3)["waveform"].equal(data.batch(3)["waveform"])
    assert not data.batch(3)["waveform"].equal(data.batch(4)["waveform"])
    assert torch.cat([data.batch(3, rank, 2)["waveform"] for rank in (0, 1)]).equal(data.batch(3)["waveform"])


def test_a_recipe_is_found_in_a_flac_without_its_samples(tmp_path, monkeypatch):
    import soundfile
    recipe = Recipe.made("audio", "/with a　space /speaker", "0" * 16, inputs={"text": "one"}, seed=1, settings={})
    sound = replace(tone(), recipe=recipe)
    sound.save(tmp_path / "a.flac")

    def refused(*args, **options):
        raise AssertionError("samples were decoded")
    monkeypatch.setattr(soundfile.SoundFile, "read", refused)
    assert read(tmp_path / "a.flac") == recipe
    with pytest.raises(InputError, match="model should be a short text"):
        Recipe.made("audio", "a\nb", "0" * 16, inputs={}, seed=1, settings={})


@pytest.mark.parametrize("digit", ["12", "-1", "1.5", '"ten"'])
def test_digits_that_are_none_are_refused(digit, tmp_path):
    tone(seconds=0.1).save(tmp_path / "a.wav")
    line = '{"file_name": "a.wav", "digit": %s, "speaker": "me"}'
    (tmp_path / "metadata.jsonl").write_text(line % digit)
    with pytest.raises(DataError, match="a.wav: digit should be a whole number from 0 to 9"):
        read_clips(tmp_path, 8000)
    for seven in ("7", '"7"'):                                            # a CSV's are strings
        (tmp_path / "metadata.jsonl").write_text(line % seven)
        assert read_clips(tmp_path, 8000)[0].text == "seven"
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.wav", "text": "  ", "speaker": "me"}')
    with pytest.raises(DataError, match="a.wav has no text: give it one"):
        read_clips(tmp_path, 8000)
