"""What FLAC, Ogg and MPEG streams promise about their length."""

from __future__ import annotations

import re
from struct import pack, unpack

from multistill.audio.errors import UnusableClipError
from multistill.audio.parts import FilePart, Promise, refuse_missing

_SEARCHED = 1 << 16  # bytes of a page at most, and of what may precede the first MPEG frame
_LAST_PAGE = 4
_TAGS = 64  # a file has one or two
_MOST_FRAMES = 2_000_000  # of 14 hours at 44.1 kHz, and the time of a file made to be counted
_RATES_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # kbit/s, MPEG 1
_RATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SAMPLES = {3: 384, 2: 1152, 1: 1152}  # per frame, by the layer's bits; layer III of MPEG 2: 576


def _frame_heads() -> re.Pattern[bytes]:
    """Of MPEG audio frames: a search in Python would take seconds over a file of 0xFF."""
    sync = [
        byte
        for byte in range(0xE0, 0x100)
        if byte >> 3 & 3 != 1 and byte >> 1 & 3 != 0  # version, layer
    ]
    rates = [
        byte
        for byte in range(0x100)
        if byte >> 4 not in (0, 15) and byte >> 2 & 3 != 3  # bit rate, sampling rate
    ]
    classes = [b"[" + re.escape(bytes(each)) + b"]" for each in (sync, rates)]
    return re.compile(b"\xff" + b"".join(classes) + b".", re.DOTALL)


_FRAME = _frame_heads()


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


def id3_length(part: FilePart) -> int:
    """Bytes of the ID3v2 tags at the beginning, of `_TAGS` at most."""
    start = 0
    for _ in range(_TAGS):
        head = part.read(start, 10)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        length = 0
        for byte in head[6:10]:
            length = length << 7 | byte & 0x7F
        start += 10 + length
    return start


def mp3_without_length(part: FilePart, start: int) -> tuple[bytes, int] | None:
    """A first frame with the number of frames, and where the sound starts that it precedes.

    libsndfile reads as many frames as a Xing header states. Without one it divides the bytes of
    the file by those of the first frame, so of a file with a variable bit rate it may read half.

    Returns:
        None for another file, and for one that has such a header or a constant bit rate.
    """
    data = part.read(start, _SEARCHED)
    at = _next_frame(data, 0)
    # The first bytes, after padding of a tag: anything else may not be MP3 at all.
    if at is None or data[:at].strip(b"\0") or data[at + 1] >> 1 & 3 != 1:
        return None
    head = data[at : at + 4]
    tag = at + _tag_offset(head)
    if data[tag : tag + 4] in (b"Xing", b"Info"):
        return None
    at += start
    states_it_otherwise = part.read(at + 36, 4) == b"VBRI"
    if states_it_otherwise:
        at += _frame_length(head)
    count, varies = _count_frames(part, at)
    if count == _MOST_FRAMES or (not varies and not states_it_otherwise):
        return None
    # Without a checksum and padding, at the first bit rate that leaves enough bytes.
    heads = (bytes([0xFF, head[1] | 1, rate << 4 | head[2] & 12, head[3]]) for rate in range(1, 15))
    first = next(h for h in heads if _frame_length(h) >= 64)
    content = b"Xing" + pack(">III", 3, count, part.size - at)
    body = first + bytes(_tag_offset(first) - 4) + content
    return body.ljust(_frame_length(first), b"\0"), at


def _count_frames(part: FilePart, at: int) -> tuple[int, bool]:
    """The number of frames of layer III from here on, and whether their bit rates differ.

    What lies between two frames is passed over. No more than `_MOST_FRAMES` are counted.
    """
    count, rates = 0, set[int]()
    while at < part.size and count < _MOST_FRAMES:
        data = part.read(at, _SEARCHED)
        position = _next_frame(data, 0)
        if position is None:
            break
        while position is not None and position + 4 <= len(data) and count < _MOST_FRAMES:
            count += 1
            rates.add(data[position + 2] >> 4)
            position += _frame_length(data[position : position + 4])
            if position + 4 <= len(data) and not _is_frame(data[position : position + 4]):
                position = _next_frame(data, position)
        at += len(data) if position is None else position
    return count, len(rates) > 1


def _next_frame(data: bytes, at: int) -> int | None:
    """The first byte of a frame in `data`, from `at` on."""
    found = _FRAME.search(data, at)
    return None if found is None else found.start()


def _tag_offset(head: bytes) -> int:
    """Where a Xing header starts in a frame of layer III: after the side information."""
    mono = head[3] >> 6 == 3
    return 4 + ((17 if mono else 32) if head[1] >> 3 & 3 == 3 else (9 if mono else 17))


def _frame_length(head: bytes) -> int:
    """Bytes of a frame of layer III; of one without a stated bit rate, those of its head."""
    first = head[1] >> 3 & 3 == 3
    halved = {3: 1, 2: 2, 0: 4}[head[1] >> 3 & 3]
    rate = (44_100, 48_000, 32_000)[head[2] >> 2 & 3] // halved
    bits = 1000 * (_RATES_1 if first else _RATES_2)[head[2] >> 4]
    return max(4, (144 if first else 72) * bits // rate + (head[2] >> 1 & 1))


def mpeg_promise(part: FilePart, start: int) -> Promise:
    """Frames and bytes of the header that encoders put into the first frame: Xing, Info or VBRI.

    Raises:
        UnusableClipError: the file has fewer bytes than it says.
    """
    data = part.read(start, _SEARCHED)
    at = _next_frame(data, 0)
    head = b"" if at is None else data[at : at + 200]
    if at is None or len(head) < 60:
        return Promise()
    layer = head[1] >> 1 & 3
    samples = 576 if layer == 1 and head[1] >> 3 & 3 != 3 else _SAMPLES[layer]
    tag = _tag_offset(head)
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
    return _FRAME.match(head) is not None
