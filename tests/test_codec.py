"""The spectral codec: its transforms invert each other, its folders come back, its losses move what they should and nothing else."""
import pytest
import torch

from audiogen import Audio, Codec
from audiogen.codec import CodecConfig
from audiogen.codec_loss import CodecTraining, DecoderFinish, SpectralDistance, check_training, codec_loss, finish_loss
from audiogen.mel import spectrum
from gencore.check import CheckpointError, ConfigError, InputError
from gencore.quantize import QuantizeConfig
from gencore.train import TrainConfig

TINY = CodecConfig(width=16, encoder_blocks=1, decoder_blocks=1, quantize=QuantizeConfig(width=8, books=3, codes=16, decay=0.8, warmup=2))


def tiny(seed=0):
    torch.manual_seed(seed)
    codec = Codec(TINY)
    for book in codec.quantizer.books:
        book.set_codebook(torch.randn(16, 8))
    return codec.eval()


def sounds(count=4, length=2048):
    time = torch.arange(length) / 8000
    return torch.stack([0.3 * torch.sin(2 * torch.pi * (200 + 150 * i) * time) for i in range(count)])[:, None]


def test_overlap_add_inverts_the_spectrum():
    decoder, waveform = tiny().decoder, torch.randn(2, 1024)
    frames = spectrum(waveform, 512, 128, torch.hann_window(512)).transpose(1, 2)                  # (B, T, F)
    torch.testing.assert_close(decoder.overlap_add(frames), waveform, atol=1e-4, rtol=1e-4)


def test_any_length_is_rounded_up_to_whole_frames():
    codec = tiny()
    for length, frames in ((1, 1), (128, 1), (129, 2), (1000, 8)):
        codes = codec.encode(torch.randn(2, 1, length))
        assert codes.shape == (2, 3, frames) and codec.decode(codes).shape == (2, 1, frames * 128)


def test_coding_in_the_middle_of_a_training_changes_nothing():
    codec, sound = tiny().train(), sounds()
    before = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    codes = codec.encode(sound)
    assert codec.training and codec.quantizer.training and codes.equal(codec.eval().encode(sound))
    assert all(tensor.equal(before[name]) for name, tensor in codec.state_dict().items())
    codec.decode(codes).mul_(0.5)                                                         # a tensor like any other


@pytest.mark.parametrize("window, training, words", [
    (100, {}, "window should be a multiple of codec.hop, 64, got 100"), (0, {}, "window should be a multiple"),
    (128, {"steps": 2}, "steps should be more than codec.quantize.warmup, 2"), (128, {"accumulate": 2}, "accumulate 1; got 9 and 2")])
def test_a_training_that_can_teach_nothing_is_refused(window, training, words):
    cfg = CodecConfig(hop=64, window=128, quantize=QuantizeConfig(warmup=2))
    check_training(cfg, 128, TrainConfig(steps=9))
    with pytest.raises(ConfigError, match=words):
        check_training(cfg, window, TrainConfig(**{"steps": 9, **training}))


@pytest.mark.parametrize("hop, window", [(127, 511), (128, 128), (128, 192)])
def test_windows_that_leave_holes_are_refused(hop, window):
    with pytest.raises(ConfigError, match=f"hop and window should be even, hop at most half the window, got {hop} and {window}"):
        CodecConfig(hop=hop, window=window)


def test_fewer_books_decode_to_a_coarser_version():
    codec, waveform = tiny(), sounds()
    codes = codec.encode(waveform)
    assert codec.decode(codes[:, :1]).shape == waveform.shape
    assert not codec.decode(codes[:, :1]).equal(codec.decode(codes))


def test_a_batch_is_coded_like_single_sounds():
    codec, waveform = tiny(), sounds()
    codes = codec.encode(waveform)
    assert all(codec.encode(waveform[i:i + 1]).equal(codes[i:i + 1]) for i in range(len(waveform)))


def test_folders_come_back_and_keep_their_digest(tmp_path):
    codec = tiny()
    codec.save_pretrained(tmp_path / "codec")
    one = Codec.from_pretrained(tmp_path / "codec")
    one.save_pretrained(tmp_path / "again")
    two = Codec.from_pretrained(tmp_path / "again")
    assert codec.digest() == one.digest() == two.digest() != tiny(1).digest()
    assert two.encode(sounds()).equal(one.encode(sounds()))
    names = {path.name for path in (tmp_path / "codec").iterdir()}
    assert names == {"config.json", "model.safetensors", "digests.json"}


def test_wrong_sounds_and_folders_are_named(tmp_path):
    codec = tiny()
    with pytest.raises(InputError, match=r"16000 Hz, this codec reads 8000 Hz: give sound.resample\(8000\)"):
        codec.encode(Audio(torch.zeros(1, 160), 16000))
    with pytest.raises(InputError, match="C should be 1, got 2"):
        codec.encode(torch.zeros(1, 2, 160))
    with pytest.raises(InputError, match="empty"):
        codec.encode(torch.zeros(1, 1, 0))
    codec.save_pretrained(tmp_path / "codec")
    path = tmp_path / "codec" / "config.json"
    path.write_text(path.read_text().replace('"width": 16', '"width": 24'))
    with pytest.raises(CheckpointError, match="config.json"):
        Codec.from_pretrained(tmp_path / "codec")


def test_distance_is_zero_for_equal_sounds_and_grows_with_noise():
    distance, real = SpectralDistance(8000), sounds()[:, 0]
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    values = [float(distance(real + amount * noise, real)) for amount in (0.0, 0.003, 0.03, 0.3)]
    assert values[0] == 0 and values == sorted(values)


def test_the_codec_learns_eight_sounds():
    torch.manual_seed(0)
    model, waveform = CodecTraining(Codec(TINY)).train(), sounds(8, 1024)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
    for step in range(60):
        loss, clips = codec_loss(model, {"waveform": waveform}, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (loss / clips).backward()
        optimizer.step()
        losses.append(loss.item() / clips)
    assert clips == 8 and losses[-1] < 0.5 * losses[0]
    assert len(model.codec.eval().encode(waveform)[:, 0].unique()) > 4


def test_the_finish_moves_decoder_and_discriminators_and_nothing_else():
    torch.manual_seed(0)
    model = DecoderFinish(tiny(), sizes=(128,)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    codes = model.codec.encode(sounds())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    for _ in range(3):
        loss, _ = finish_loss(model, {"waveform": sounds()}, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {name.split(".")[0] + "." + name.split(".")[1] for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert moved == {"codec.decoder", "discriminators.0"}
    assert model.codec.encode(sounds()).equal(codes)


def test_each_side_of_the_finish_gets_its_own_gradient():
    """The decoder's adversarial part leaves no gradient on the discriminators: theirs equals that of the hinge loss alone."""
    torch.manual_seed(0)
    model = DecoderFinish(tiny(), sizes=(128,)).train()
    finish_loss(model, {"waveform": sounds()}, None)[0].backward()
    judge = model.discriminators[0]
    whole = [p.grad.clone() for p in judge.parameters()]
    judge.zero_grad()
    real, made = sounds()[:, 0], model.codec(sounds())[0][:, 0].detach()
    hinge = torch.relu(1 - judge(real)[0]).mean() + torch.relu(1 + judge(made)[0]).mean()
    (len(real) * hinge).backward()
    for one, other in zip(whole, judge.parameters()):
        torch.testing.assert_close(one, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("change, words", [
    (lambda w: (w * 32768).short(), "divide 16-bit samples by 32768"), (lambda w: (w.numpy() * 32768).astype("int16"), "divide 16-bit samples"),
    (lambda w: w * float("nan"), "not finite"), (lambda w: "sound", "should be a tensor or an array"), (lambda w: w[:, :, :0], "empty"),
    (lambda w: w[0], "expected 3 dimensions")])
def test_wrong_waveforms_are_named(change, words):
    with pytest.raises(InputError, match=words):
        tiny().encode(change(sounds()))


@pytest.mark.parametrize("change, words", [
    (lambda c: c.float(), "codes should be whole numbers"), (lambda c: c.bool(), "codes should be whole numbers"),
    (lambda c: c[:, :, :0], "codes are empty"), (lambda c: c + 1000, "codes should be 0.."), (lambda c: c[0], "expected 3 dimensions")])
def test_wrong_codes_are_named(change, words):
    codec = tiny()
    with pytest.raises(InputError, match=words):
        codec.decode(change(codec.encode(sounds())))


def test_arrays_and_short_integers_are_read_as_tensors_are():
    codec = tiny()
    codes = codec.encode(sounds())
    assert codec.encode(sounds().numpy()).equal(codes)
    assert codec.decode(codes.numpy()).equal(codec.decode(codes)) and codec.decode(codes.to(torch.int16)).equal(codec.decode(codes))


def test_a_codec_moves_to_a_device_and_stays_in_float32():
    codec = tiny()
    assert codec.to("cpu") is codec
    with pytest.raises(InputError, match='expected a device such as "cpu".*got torch.bfloat16'):
        codec.to(torch.bfloat16)
