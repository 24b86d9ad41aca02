"""Sound files as samples (WAV, FLAC, OGG, MP3) by soundfile, which would read a WAV or MP3 that is cut off as a shorter sound."""
import contextlib
import io
import os

from gencore.check import DataError, InputError
from gencore.metadata import wav_comment

SAMPLES = 256_000_000           # a longer sound is refused before it is decoded (all channels together)
STREAMED = 0x7FFFF000           # a size of at least this, or 0, in a WAV's header: its writer could not go back to fill it in


def read_sound(source, name, *, longest=None, samples=None):
    """Path or file object -> (float32 tensor (C,L) in [-1,1], sample rate, comment). longest: seconds, samples: of all channels, at most.

    DataError names the file: missing, no sound, cut off, too long, or with samples that are not finite."""
    import soundfile
    import torch
    if isinstance(source, (str, os.PathLike)) and not os.path.isfile(source):
        raise DataError(f"{name or repr(name)} {'is a folder' if os.path.isdir(source) else 'does not exist'}: give the path of a sound file")
    try:
        with soundfile.SoundFile(whole_file(source, name)) as file:
            if longest is not None and file.frames > longest * file.samplerate:
                raise DataError(f"{name} is {file.frames / file.samplerate:.0f} s long, at most {longest:.0f} s are read: cut it into pieces")
            if samples is not None and file.frames * file.channels > samples:
                raise DataError(f"{name} has {file.frames * file.channels:,} samples, at most {samples:,} are read")
            read, frames, rate, comment = file.read(dtype="float32", always_2d=True), file.frames, file.samplerate, file.comment
    except DataError:
        raise
    except Exception as error:                                                        # decoders raise what they like
        raise DataError(f"{name} is not sound that can be read (WAV, FLAC, OGG and MP3 are known): {error}") from error
    if len(read) < 0.99 * frames:                                                     # of an MP3 the number may be a guess
        raise DataError(f"{name} is cut off: {len(read)} of its {frames} samples are there; get it anew")
    waveform = torch.from_numpy(read.T.copy())                                        # (C, L)
    if not waveform.isfinite().all():
        raise DataError(f"{name} holds samples that are not finite")
    return waveform, rate, comment


def long_comment(source, start=0):
    """Path, or file object and where the sound begins in it -> the JSON in a WAV's comment, "" where there is none.

    `read_sound` gives none of more than some thousand bytes: libsndfile does not."""
    opened = open(source, "rb") if isinstance(source, (str, os.PathLike)) else contextlib.nullcontext(source)
    with opened as file, contextlib.suppress(InputError):               # what follows the samples is not judged
        file.seek(start)
        raw = file.read() if file.read(4) == b"RIFF" else b""
        return (wav_comment(b"RIFF" + raw) or b"").decode("utf-8", "replace") if raw else ""
    return ""


def whole_file(source, name):
    """Path or file object -> what soundfile is to open. DataError when a WAV's header promises more samples than its file has.

    A stream's sizes promise nothing; those of 0, which libsndfile would believe, are filled in. What follows the samples is not judged."""
    opened = open(source, "rb") if isinstance(source, (str, os.PathLike)) else contextlib.nullcontext(source)
    with opened as file:
        start = file.tell()
        end = file.seek(0, io.SEEK_END)
        file.seek(start)
        head = file.read(12)
        while head[:4] == b"RIFF" and head[8:] == b"WAVE":
            chunk, at = file.read(8), file.tell()
            size, there = int.from_bytes(chunk[4:], "little"), end - at
            if chunk[:4] == b"data" and there < size < STREAMED:
                raise DataError(f"{name} is cut off: its header says {size:,} bytes of samples, {there:,} are there; get it anew")
            if chunk[:4] == b"data" and size == 0 == int.from_bytes(head[4:8], "little"):
                file.seek(start)
                raw = file.read()
                return io.BytesIO(raw[:at - start - 4] + b"\xff" * 4 + raw[at - start:])
            if len(chunk) < 8 or chunk[:4] == b"data":
                break
            file.seek(size + size % 2, io.SEEK_CUR)
        file.seek(start)
    return source
