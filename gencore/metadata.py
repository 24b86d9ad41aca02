"""A short text inside a PNG or WAV: put in and taken out by chunks, with the pixels and samples left as they are.

PNG: chunk tEXt (specification 11.3.3), before the pixels. WAV: the comment ICMT in a LIST chunk of type INFO, at the end.
libsndfile writes and reads that comment too, but drops one of more than some thousand bytes."""
import struct
import zlib

from gencore.check import InputError

PNG = b"\x89PNG\r\n\x1a\n"
LIMIT = 1 << 20                 # bytes of text


def png_text(raw, key):
    """The text of a PNG's chunk tEXt, zTXt or iTXt with this key; None when it has none."""
    for kind, start, stop in _png_chunks(raw):
        if kind in (b"tEXt", b"zTXt", b"iTXt") and raw[start + 8:stop].startswith(key.encode() + b"\0"):
            return _chunk_text(kind, raw[start + 8 + len(key) + 1:stop - 4])
    return None


def png_with_text(raw, key, text):
    """A PNG with this text (ASCII) under this key, in place of an earlier one."""
    body = key.encode("latin-1") + b"\0" + text.encode("ascii")
    parts = [PNG]
    for kind, start, stop in _png_chunks(raw):
        if kind not in (b"tEXt", b"zTXt", b"iTXt") or not raw[start + 8:stop].startswith(key.encode() + b"\0"):
            parts.append(raw[start:stop])
        if kind == b"IHDR":
            parts.append(struct.pack(">I", len(body)) + b"tEXt" + body + struct.pack(">I", zlib.crc32(b"tEXt" + body)))
    return b"".join(parts)


def wav_comment(raw):
    """The JSON object in a WAV's comment (ICMT of a LIST chunk of type INFO); None when it has none."""
    found = [raw[start:stop] for kind, begin, end in _wav_chunks(raw) if kind == b"LIST"
             for start, stop in _comments(raw, begin, end)]
    if not found:
        return None
    text = found[-1][8:].rstrip(b"\0")
    if len(text) > LIMIT:
        raise InputError(f"the WAV's comment has more than {LIMIT} bytes: it is no recipe")
    return text


def wav_with_comment(raw, text):
    """A WAV with this JSON text (ASCII) as its comment, in place of an earlier one; other metadata stays."""
    parts = []
    for kind, begin, end in _wav_chunks(raw):
        body = raw[begin + 8:end]
        for start, stop in reversed(_comments(raw, begin, end) if kind == b"LIST" else []):
            body = body[:start - begin - 8] + body[stop + stop % 2 - begin - 8:]
        if kind != b"LIST" or body != b"INFO":
            parts.append(kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2))
    body = text.encode("ascii") + b"\0"
    item = b"ICMT" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    parts.append(b"LIST" + struct.pack("<I", 4 + len(item)) + b"INFO" + item)
    whole = b"WAVE" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(whole)) + whole


def wav_samples(raw):
    """(format, samples) of a WAV as bytes: what is heard, without its metadata."""
    chunks = {kind: raw[start + 8:stop] for kind, start, stop in _wav_chunks(raw)}
    return chunks.get(b"fmt "), chunks.get(b"data")


def _png_chunks(raw):
    """Yields (kind, start, stop) of each chunk, length and checksum included."""
    at = len(PNG)
    if raw[:at] != PNG:
        raise InputError("expected a PNG picture, got something else")
    while at < len(raw):
        stop = at + 12 + int.from_bytes(raw[at:at + 4], "big")
        if stop > len(raw) or zlib.crc32(raw[at + 4:stop - 4]) != int.from_bytes(raw[stop - 4:stop], "big"):
            raise InputError(f"the PNG is truncated or damaged at byte {at}: save it again")
        yield raw[at + 4:at + 8], at, stop
        if raw[at + 4:at + 8] == b"IEND":
            return
        at = stop
    raise InputError("the PNG is truncated: save it again")


def _chunk_text(kind, body):
    """Bytes after the key -> the text as bytes, never more than LIMIT of them."""
    packed = kind == b"zTXt"
    if kind == b"zTXt":
        body = body[1:]                                             # method
    elif kind == b"iTXt":
        packed, body = body[:1] == b"\1", body[2:].split(b"\0", 2)[-1]  # flag, method, language, key in that language
    if packed:
        unpack = zlib.decompressobj()
        try:
            body = unpack.decompress(body, LIMIT + 1)
        except zlib.error:
            raise InputError("the PNG's text can't be unpacked: save it again") from None
    if len(body) > LIMIT:
        raise InputError(f"the PNG's text has more than {LIMIT} bytes: it is no recipe")
    return body


def _wav_chunks(raw):
    """Yields (kind, start, stop) of each chunk, its header included and its padding not."""
    if raw[:4] != b"RIFF" or raw[8:12] != b"WAVE":
        raise InputError("expected a WAV sound, got something else")
    at = 12
    while at + 8 <= len(raw):
        stop = at + 8 + int.from_bytes(raw[at + 4:at + 8], "little")
        if stop > len(raw):
            raise InputError(f"the WAV is truncated at byte {at}: save it again")
        yield raw[at:at + 4], at, stop
        at = stop + stop % 2


def _comments(raw, begin, end):
    """[(start, stop)] of the comments with a JSON object inside one LIST chunk, their headers included."""
    found, at = [], begin + 12
    while raw[begin + 8:begin + 12] == b"INFO" and at + 8 <= end:
        stop = at + 8 + int.from_bytes(raw[at + 4:at + 8], "little")
        if raw[at:at + 4] == b"ICMT" and stop <= end and raw[at + 8:at + 9] == b"{":
            found.append((at, stop))
        at = stop + stop % 2                                        # chunks begin at even bytes
    return found
