"""What the container of an audio file promises about the length of its sound.

libsndfile reads what is there and says nothing about what is missing, so a half file would pass
as a shorter recording. `read_promise` reads the lengths that the container states: the bytes of
its sound, which must be in the file, and the frames that decoding must give. Lengths that
programs write when they stream and cannot go back (0, or all bits set) promise nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from struct import Struct, error, unpack
from typing import NamedTuple

from multistill.audio.compressed import flac_promise, id3_length, mpeg_promise, ogg_promise
from multistill.audio.errors import UnusableClipError
from multistill.audio.parts import FilePart, Promise, refuse_missing

_HEAD = 4096  # bytes
_MOST_CHUNKS = 4096
_FORMAT = "HHIIHH"  # format tag, channels, rate, bytes/second, bytes/frame, bits
_EXTENSIBLE = 0xFFFE
_MPEG_LAYER_3 = 0x55
_UNCOMPRESSED = (1, 3, 6, 7)  # integer, floating point, A-law and u-law
_ENCODINGS = {  # format tag 1 is integer PCM, 3 is floating point
    (1, 8): "WAV PCM_U8",
    (1, 16): "WAV PCM_16",
    (1, 24): "WAV PCM_24",
    (1, 32): "WAV PCM_32",
    (3, 32): "WAV FLOAT",
    (3, 64): "WAV DOUBLE",
}
_SAMPLE_DUMP = b"\xf0\x7e"
_PACKETS = 24  # bytes before the sizes in a table of packets of CAF
_MOST_SIZES = 1 << 24  # bytes of them: a day of ALAC
_BAD_SIZE = re.compile(rb"[\x80-\xff]{5}|[\x80-\xff]\Z")
"""In a table of packets of CAF: a size of more than five bytes of 7 bits, or one that is cut."""
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of the ids of all chunks within


def read_promise(handle: int, size: int) -> Promise:
    """Read what the container says about its length.

    Args:
        handle: descriptor of the open file; its position is neither used nor moved.
        size: bytes of the file.

    Raises:
        UnusableClipError: the file ends before the sound that the container announces, or it is one
            about which libsndfile writes to standard output, which holds results.
    """
    part = FilePart(handle, size, os.pread(handle, _HEAD, 0))
    skip = id3_length(part)
    magic = part.read(skip, 16)
    if magic[:2] == _SAMPLE_DUMP:  # libsndfile prints what it thinks of damaged ones
        raise UnusableClipError(
            "not supported", "a MIDI Sample Dump (SDS) is not read; save it as WAV or FLAC"
        )
    reader = _READERS.get(magic[:4])
    synced = len(magic) > 1 and magic[0] == 0xFF and magic[1] & 0xE0 == 0xE0
    if magic == _W64_RIFF:
        reader = _w64
    elif synced or (skip and reader is not flac_promise):
        reader = mpeg_promise
    if reader is None:
        return Promise()
    try:
        return reader(part, skip)
    except error:  # it ends within a field, or means something else: left to libsndfile
        return Promise()


class _Chunk(NamedTuple):
    name: bytes
    start: int
    length: int


def _chunks(
    part: FilePart, start: int, head: Struct, unit: int, inclusive: bool = False
) -> Iterator[_Chunk]:
    """The chunks of a file, each with its name, first byte and length without its head.

    Args:
        head: of a chunk: name and length.
        unit: chunks start at multiples of it.
        inclusive: the length counts the head.
    """
    for _ in range(_MOST_CHUNKS):
        data = part.read(start, head.size)
        if len(data) < head.size:
            return
        name, length = head.unpack(data)
        if inclusive:
            length -= head.size
        if length < -1:
            return
        yield _Chunk(name, start + head.size, length)
        start += head.size + length
        start += -start % unit


def _riff(part: FilePart, _: int) -> Promise:
    if part.read(8, 4) != b"WAVE":
        return Promise()
    form: tuple[int, ...] | None = None
    frames, length64 = None, None
    order = ">" if part.read(0, 4) == b"RIFX" else "<"
    for name, start, length in _chunks(part, 12, Struct(f"{order}4sI"), 2):
        if name == b"ds64":
            length64 = unpack("<Q", part.read(start + 8, 8))[0]
        elif name == b"fmt ":
            form = unpack(f"{order}{_FORMAT}", part.read(start, 16))
            if form[0] == _EXTENSIBLE and length >= 40:
                form = (*unpack(f"{order}H", part.read(start + 24, 2)), *form[1:], _EXTENSIBLE)
        elif name == b"fact" and length >= 4:
            frames = unpack(f"{order}I", part.read(start, 4))[0]
        elif name == b"data":
            if length64 is not None and length == 0xFFFFFFFF:
                length = length64
            elif 0x7FFF0000 <= length <= 0x80000000:  # written by sox and others that stream
                return Promise()
            if not refuse_missing(part, start, length):
                return Promise()
            if form is None:
                return Promise()
            return _wave_promise(form, frames, length, plain=order == "<" and length64 is None)
        else:
            refuse_missing(part, start, length)
    return Promise()


def _wave_promise(form: tuple[int, ...], fact: int | None, length: int, *, plain: bool) -> Promise:
    """Args: form: fields of the `fmt ` chunk, its real format tag first."""
    tag, channels, rate, _, block, bits = form[:6]
    if tag not in _UNCOMPRESSED:
        known = fact is not None and 0 < fact < 0x7FFF0000
        return Promise(fact if known else None, slack=2 * 1152 if tag == _MPEG_LAYER_3 else 0)
    encoding = _ENCODINGS.get((tag, bits))
    if not block or block * 8 != channels * bits or not length // block:
        return Promise()
    header = None
    if plain and encoding is not None and _EXTENSIBLE not in form[6:]:
        header = (length // block, rate, channels, encoding)
    return Promise(length // block, header=header)


def _w64(part: FilePart, _: int) -> Promise:
    tag, frames = 1, None
    head = Struct("<16sQ")
    for name, start, length in _chunks(part, 40, head, 8, inclusive=True):
        if name[4:] != _W64_TAIL:
            continue
        if name[:4] == b"fmt ":
            tag = unpack("<H", part.read(start, 2))[0]
        elif name[:4] == b"fact":
            frames = unpack("<Q", part.read(start, 8))[0]
        elif name[:4] == b"data":
            if refuse_missing(part, start, length) and tag not in (*_UNCOMPRESSED, _EXTENSIBLE):
                return Promise(frames if frames and frames < 2**62 else None)
            return Promise()
    return Promise()


def _aiff(part: FilePart, _: int) -> Promise:
    frames, sound = None, False
    if part.read(8, 4) not in (b"AIFF", b"AIFC", b"8SVX", b"16SV"):
        return Promise()
    for name, start, length in _chunks(part, 12, Struct(">4sI"), 2):
        if name == b"COMM":
            frames = unpack(">I", part.read(start + 2, 4))[0]
        elif name in (b"SSND", b"BODY"):
            if not refuse_missing(part, start, length):
                return Promise()
            sound = True
        elif not sound:
            refuse_missing(part, start, length)
    return Promise(frames if frames and frames < 0x7FFF0000 else None)


def _au(part: FilePart, _: int) -> Promise:
    order = "<" if part.read(0, 4) == b"dns." else ">"
    start, length = unpack(f"{order}II", part.read(4, 8))
    refuse_missing(part, start, length)
    return Promise()


def _caf(part: FilePart, _: int) -> Promise:
    frames, sound = None, False
    for name, start, length in _chunks(part, 8, Struct(">4sq"), 1):
        if name == b"pakt":
            frames = unpack(">q", part.read(start + 8, 8))[0]
            sizes = min(length, part.size - start) - _PACKETS
            if sizes > _MOST_SIZES or _BAD_SIZE.search(part.read(start + _PACKETS, max(0, sizes))):
                raise UnusableClipError("cannot be decoded", "its table of packets is damaged")
        elif name == b"data":
            if length == -1:
                break
            refuse_missing(part, start, length)
            sound = True
        elif not sound:
            refuse_missing(part, start, length)
    return Promise(frames if frames and frames > 0 else None)


def _nist(part: FilePart, _: int) -> Promise:
    header = part.read(0, 1024)
    fields = {}
    for line in header.split(b"\n")[2:]:
        name, _kind, value = [*line.split(None, 2), b"", b"", b""][:3]
        fields[name] = value.strip()
    try:
        start = int(header.split(b"\n")[1])
        counts = [
            int(fields.get(name, b"1"))
            for name in (b"sample_count", b"channel_count", b"sample_n_bytes")
        ]
    except (ValueError, IndexError):
        return Promise()
    if b"shorten" not in fields.get(b"sample_coding", b"") and b"sample_count" in fields:
        refuse_missing(part, start, counts[0] * counts[1] * counts[2])
    return Promise()


def _voc(part: FilePart, _: int) -> Promise:
    start = unpack("<H", part.read(20, 2))[0]
    for _block in range(_MOST_CHUNKS):
        head = part.read(start, 4)
        if not head or head[0] == 0:
            return Promise()
        length = int.from_bytes(head[1:4].ljust(3, b"\0"), "little")
        refuse_missing(part, start + 4, length)
        start += 4 + length
    return Promise()


_READERS: dict[bytes, Callable[[FilePart, int], Promise]] = {
    b"RIFF": _riff,
    b"RIFX": _riff,
    b"RF64": _riff,
    b"BW64": _riff,
    b"FORM": _aiff,
    b".snd": _au,
    b"dns.": _au,
    b"caff": _caf,
    b"NIST": _nist,
    b"Crea": _voc,
    b"fLaC": flac_promise,
    b"OggS": ogg_promise,
}
