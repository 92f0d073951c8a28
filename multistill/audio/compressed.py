"""What FLAC, Ogg and MPEG streams promise about their length."""

from __future__ import annotations

from struct import unpack

from multistill.audio.errors import UnusableClipError
from multistill.audio.parts import FilePart, Promise, refuse_missing

_SEARCHED = 1 << 16  # bytes of a page at most, and of what may precede the first MPEG frame
_LAST_PAGE = 4
_SAMPLES = {3: 384, 2: 1152, 1: 1152}  # per frame, by the layer's bits; layer III of MPEG 2: 576


def flac_promise(part: FilePart, start: int) -> Promise:
    """The number of samples in STREAMINFO, 36 bits; 0 if the encoder did not know it."""
    packed = unpack(">Q", part.read(start + 18, 8))[0]
    return Promise(packed & (2**36 - 1) or None)


def ogg_promise(part: FilePart, start: int) -> Promise:
    """The last page must be whole and be marked as the last one.

    Raises:
        UnusableClipError: it is not.
    """
    tail_start = max(start, part.size - 2 * _SEARCHED)
    tail = part.read(tail_start, part.size - tail_start)
    at = tail.rfind(b"OggS\0")
    if at < 0:
        return Promise()
    head = tail[at : at + 27]
    segments = tail[at + 27 : at + 27 + head[26]] if len(head) == 27 else b""
    whole = len(head) == 27 and len(segments) == head[26]
    if whole and at + 27 + len(segments) + sum(segments) <= len(tail) and head[5] & _LAST_PAGE:
        return Promise()
    raise UnusableClipError("truncated", "its last page is missing or incomplete")


def mpeg_promise(part: FilePart, start: int) -> Promise:
    """Frames and bytes of the header that encoders put into the first frame: Xing, Info or VBRI.

    Raises:
        UnusableClipError: the file has fewer bytes than it says.
    """
    data = part.read(start, _SEARCHED)
    at = 0
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        if _is_frame(data[at : at + 4]):
            break
        at += 1
    head = data[at : at + 200]
    if at < 0 or len(head) < 60:
        return Promise()
    version, layer, mono = head[1] >> 3 & 3, head[1] >> 1 & 3, head[3] >> 6 == 3
    first = version == 3
    samples = 576 if layer == 1 and not first else _SAMPLES[layer]
    tag = 4 + ((17 if mono else 32) if first else (9 if mono else 17))
    frames = length = None
    trimmed = 0
    if head[tag : tag + 4] in (b"Xing", b"Info"):
        flags = unpack(">I", head[tag + 4 : tag + 8])[0]
        field = tag + 8
        if flags & 1:
            frames = unpack(">I", head[field : field + 4])[0]
            field += 4
        if flags & 2:
            length = unpack(">I", head[field : field + 4])[0]
        gapless = head[tag + 141 : tag + 144]
        if flags & 15 == 15 and len(gapless) == 3:  # delay and padding, 12 bits each
            bits = int.from_bytes(gapless, "big")
            trimmed = (bits >> 12) + (bits & 0xFFF)
    elif head[36:40] == b"VBRI":
        length, frames = unpack(">II", head[46:54])
    if length:
        refuse_missing(part, start + at, length)
    if not frames or frames >= 2**31:
        return Promise()
    # Decoders also drop 529 samples, and the frame of this header may be counted.
    return Promise(max(1, frames * samples - trimmed), slack=2 * samples + 529)


def _is_frame(head: bytes) -> bool:
    """Whether four bytes are the head of an MPEG audio frame."""
    return (
        head[1] & 0xE0 == 0xE0
        and head[1] >> 3 & 3 != 1  # version
        and head[1] >> 1 & 3 != 0  # layer
        and head[2] >> 4 not in (0, 15)  # bit rate
        and head[2] >> 2 & 3 != 3  # sampling rate
    )
