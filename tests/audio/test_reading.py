"""Recordings of every container: decoded completely, or left out for a reason that is named."""

from __future__ import annotations

import os
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.recordings import RATE, STATED, UNSEEKABLE, chunk, encoded, noise, wav
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multistill.audio import compressed
from multistill.audio.digests import Digests, digest_of
from multistill.audio.errors import UnusableClipError
from multistill.audio.parts import FilePart
from multistill.audio.reading import convert, opened, read_header, read_sound

FRAMES = 40_000
MAGIC = [
    *(b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS", b"caff", b".snd", b"ID3\4", b"NIST"),
    *(b"\xff\xfb\x90\x00", b"Creative Voice File\x1a"),
]
NAMES = [f"{container}-{codec}" for container, codec in STATED]


def reason(path: Path) -> str:
    with pytest.raises(UnusableClipError) as caught:
        read_sound(str(path))
    return str(caught.value)


def header(path: Path) -> tuple[int, int, int]:
    with opened(str(path)) as handle:
        return read_header(handle)[:3]


@pytest.mark.parametrize(("container", "codec"), STATED, ids=NAMES)
def test_a_whole_file_is_read_whole_and_a_part_of_it_never(
    tmp_path: Path, container: str, codec: str
) -> None:
    data = encoded(tmp_path, container, codec, noise(FRAMES))
    path = tmp_path / "clip"
    path.write_bytes(data)
    assert FRAMES <= len(read_sound(str(path)).samples) < FRAMES + 1_024
    assert header(path)[0] >= FRAMES
    # Some containers have a chunk after the samples.
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(UnusableClipError):
            read_sound(str(path))


@pytest.mark.parametrize(("container", "codec"), STATED, ids=NAMES)
def test_files_after_a_short_sound_and_with_more_channels_are_whole(
    tmp_path: Path, container: str, codec: str
) -> None:
    """A complete file is never called truncated, whatever its length."""
    path = tmp_path / "clip"
    for frames in (1_201, 4_000, 16_003):
        for channels in (1, 2):
            try:
                data = encoded(tmp_path, container, codec, noise(frames, channels))
            except (soundfile.LibsndfileError, RuntimeError):
                continue  # a codec of one channel
            path.write_bytes(data)
            assert len(read_sound(str(path)).samples) >= frames


@pytest.mark.parametrize(("container", "codec"), UNSEEKABLE)
def test_telephone_codecs_that_cannot_be_sought_are_decoded(
    tmp_path: Path, container: str, codec: str
) -> None:
    sound = 0.3 * np.sin(2 * np.pi * 300 * np.arange(16_000) / 8_000)
    (tmp_path / "clip").write_bytes(encoded(tmp_path, container, codec, sound, 8_000))
    samples = read_sound(str(tmp_path / "clip")).samples[:32_000]
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() * RATE / len(samples) == pytest.approx(300, abs=1)


@pytest.mark.parametrize("stated", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFF - 44])
def test_a_length_that_was_not_known_when_it_was_written_is_no_truncation(
    tmp_path: Path, stated: int
) -> None:
    sound = noise(FRAMES)
    (tmp_path / "clip").write_bytes(wav(sound, length=stated))
    samples = read_sound(str(tmp_path / "clip")).samples
    assert len(samples) == FRAMES
    assert np.abs(samples - sound).max() < 1e-3
    assert header(tmp_path / "clip")[0] == FRAMES


@pytest.mark.parametrize("container", ["AU", "CAF"])
def test_nor_is_it_in_other_containers(tmp_path: Path, container: str) -> None:
    data = bytearray(encoded(tmp_path, container, "PCM_16", noise(FRAMES)))
    at = 8 if container == "AU" else data.index(b"data") + 4
    length = 4 if container == "AU" else 8
    data[at : at + length] = b"\xff" * length
    (tmp_path / "clip").write_bytes(data)
    assert len(read_sound(str(tmp_path / "clip")).samples) == FRAMES


def test_a_flac_stream_of_unknown_length_is_read_and_counted(tmp_path: Path) -> None:
    data = bytearray(encoded(tmp_path, "FLAC", "PCM_16", noise(FRAMES)))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "clip").write_bytes(data)
    assert len(read_sound(str(tmp_path / "clip")).samples) == FRAMES
    assert header(tmp_path / "clip")[0] == FRAMES


def test_the_samples_may_come_late(tmp_path: Path) -> None:
    data = wav(noise(FRAMES), before=chunk(b"LIST", b"INFO" + bytes(9_001)))
    (tmp_path / "clip").write_bytes(data)
    assert len(read_sound(str(tmp_path / "clip")).samples) == FRAMES
    (tmp_path / "clip").write_bytes(data[: len(data) // 2])
    assert reason(tmp_path / "clip").startswith("truncated: it has ")
    (tmp_path / "clip").write_bytes(data[:5_000])
    assert reason(tmp_path / "clip").startswith("truncated: ")


def test_a_fact_chunk_that_promises_more_than_can_be_decoded_is_a_truncation(
    tmp_path: Path,
) -> None:
    """Rewritten after the cut, so that all lengths in bytes agree."""
    data = encoded(tmp_path, "WAV", "IMA_ADPCM", noise(FRAMES))
    at = data.index(b"data")
    kept = data[at + 8 : at + 8 + 256 * 30]
    (tmp_path / "clip").write_bytes(data[:at] + chunk(b"data", kept))
    assert "can be decoded" in reason(tmp_path / "clip")


def test_an_mp3_file_whose_header_states_frames_only_is_compared_too(tmp_path: Path) -> None:
    data = bytearray(encoded(tmp_path, "MP3", "MPEG_LAYER_III", noise(80_000)))
    at = max(data.find(b"Xing"), data.find(b"Info"))
    flags = struct.unpack(">I", data[at + 4 : at + 8])[0]
    assert flags & 3 == 3
    tagged = b"ID3\4\0\0" + bytes([0, 0, 2, 0]) + bytes(256) + bytes(data)
    (tmp_path / "clip").write_bytes(tagged)
    assert len(read_sound(str(tmp_path / "clip")).samples) == 80_000
    for cut in (len(data) // 2, len(data) * 4 // 5):
        (tmp_path / "clip").write_bytes(tagged[: 266 + cut])
        assert "truncated" in reason(tmp_path / "clip")
    data[at + 12 : at + 16] = bytes(4)  # the bytes are unknown
    (tmp_path / "clip").write_bytes(data[: len(data) // 2])
    assert "can be decoded" in reason(tmp_path / "clip")


@pytest.mark.parametrize(
    ("rate", "channels", "frames"),
    [(0, 1, 8_000), (1, 1, 8_000), (999, 1, 8_000), (768_001, 1, 8_000), (2**31 - 2, 1, 8_000),
     (2**32 - 1, 1, 8_000), (16_000, 0, 8_000), (16_000, 1_025, 80_000), (16_000, 65_535, 80_000)],
)  # fmt: skip
def test_a_header_that_no_recording_has_is_refused(
    tmp_path: Path, rate: int, channels: int, frames: int
) -> None:
    (tmp_path / "clip").write_bytes(wav(noise(frames), rate=rate, channels=channels))
    reason(tmp_path / "clip")
    with pytest.raises(UnusableClipError), opened(str(tmp_path / "clip")) as handle:
        read_header(handle)


def test_frames_without_bytes_are_refused(tmp_path: Path) -> None:
    data = bytearray(wav(noise(800)))
    data[32:36] = bytes(4)  # bytes of a frame, and bits of a sample
    (tmp_path / "clip").write_bytes(data)
    reason(tmp_path / "clip")


def test_a_length_that_the_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    data = bytearray(encoded(tmp_path, "FLAC", "PCM_16", noise(FRAMES)))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    (tmp_path / "clip").write_bytes(data)
    assert "cannot be in" in reason(tmp_path / "clip")


@pytest.mark.parametrize("rate", [1_000, 1_009, 8_000, 11_127, 22_050, 44_101, 47_999, 191_999,
                                  767_999])  # fmt: skip
def test_any_rate_is_resampled_in_bounded_time_and_memory(tmp_path: Path, rate: int) -> None:
    sound = 0.5 * np.sin(2 * np.pi * 200 * np.arange(2 * rate) / rate)
    soundfile.write(tmp_path / "clip", sound, rate, format="WAV")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    samples = read_sound(str(tmp_path / "clip")).samples
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    assert abs(len(samples) - 32_000) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 200 * np.arange(len(samples)) / RATE)
    assert np.abs(samples - expected)[2_000:-2_000].max() < 0.01


def test_many_channels_and_long_files_are_read_in_blocks(tmp_path: Path) -> None:
    """200 MB as float32, of which one second is wanted."""
    with soundfile.SoundFile(
        tmp_path / "clip", "w", RATE, 100, subtype="PCM_U8", format="WAV"
    ) as file:
        for second in range(33):
            file.write(noise(RATE, 100, second))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sound = read_sound(str(tmp_path / "clip"), max_seconds=1.0)
    assert sound.cut
    assert len(sound.samples) == RATE
    assert len(read_sound(str(tmp_path / "clip")).samples) == 33 * RATE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024  # KiB


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(STATED),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
    st.booleans(),
)
def test_a_damaged_file_gives_a_sound_or_a_reason_and_nothing_else(
    tmp_path: Path, kind: tuple[str, str], damage: list[tuple[float, int]], in_header: bool
) -> None:
    data = bytearray(encoded(tmp_path, *kind, noise(4_000)))
    for where, value in damage:
        data[int(where * min(len(data) - 1, 100 if in_header else len(data) - 1))] = value
    path = tmp_path / "damaged"
    path.write_bytes(data)
    try:
        assert np.isfinite(read_sound(str(path), max_seconds=5).samples).all()
    except UnusableClipError as error:
        assert str(error)


@given(st.binary(max_size=300), st.sampled_from(MAGIC))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_bytes_after_any_magic_number_give_a_reason(
    tmp_path: Path, data: bytes, magic: bytes
) -> None:
    (tmp_path / "bytes").write_bytes(magic + data)
    try:
        read_sound(str(tmp_path / "bytes"))
    except UnusableClipError as error:
        assert str(error)


def test_a_named_pipe_and_a_folder_are_no_recordings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert "not a regular file" in reason(tmp_path / "pipe.wav")
    assert "not a regular file" in reason(tmp_path)


def test_every_bit_of_a_file_is_in_its_digest(tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(3_000_000)
    path = tmp_path / "clip"

    def digest(content: bytes) -> str:
        path.write_bytes(content)
        with opened(str(path)) as handle:
            return digest_of(handle)

    first = digest(data)
    assert digest(data) == first
    for offset in (0, 5_000, 1_048_576, 1_500_001, 2_999_999):
        changed = bytearray(data)
        changed[offset] ^= 1
        assert digest(bytes(changed)) != first


def test_a_file_that_is_not_the_one_that_was_prepared_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(noise(FRAMES)))
    with opened(str(path)) as handle:
        digest = digest_of(handle)
    assert len(read_sound(str(path), digest=digest).samples) == FRAMES
    sound = noise(FRAMES)
    sound[10_000:10_010] = 0
    path.write_bytes(wav(sound))
    with pytest.raises(UnusableClipError, match=r"changed since .*run the same command again"):
        read_sound(str(path), digest=digest)


class TestRememberedDigests:
    @staticmethod
    def digest(digests: Digests, path: Path) -> str:
        with opened(str(path)) as handle:
            return digests.digest(str(path), handle)

    def test_a_file_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("multistill.audio.digests.SETTLED", -1.0)
        paths = [tmp_path / f"{i}.wav" for i in range(20)]
        for i, path in enumerate(paths):
            path.write_bytes(bytes([i]) * 100)
        store = tmp_path / "digests.npy"
        first = Digests(store)
        expected = [self.digest(first, path) for path in paths]
        first.save()
        read: list[int] = []

        def recorded(handle: int) -> str:
            read.append(handle)
            return digest_of(handle)

        monkeypatch.setattr("multistill.audio.digests.digest_of", recorded)
        again = Digests(store)
        assert [self.digest(again, path) for path in paths] == expected
        assert again.confirm([str(path) for path in paths], expected)
        assert read == []
        # An edit of the same size whose time is set back is seen.
        status = paths[7].stat()
        with paths[7].open("r+b") as stream:
            stream.write(b"x")
        os.utime(paths[7], ns=(status.st_atime_ns, status.st_mtime_ns))
        assert not Digests(store).confirm([str(path) for path in paths], expected)
        assert len(read) == 1
        # Other rights change nothing but the time of change: read again, and the same.
        paths[8].chmod(0o600)
        kept = [path for path in paths if path != paths[7]]
        assert again.confirm([str(path) for path in kept], [expected[paths.index(p)] for p in kept])
        assert len(read) == 2

    @pytest.mark.parametrize("bad", [None, "", "no digest", "ab", "0" * 32, "0" * 31 + "x", "\0"])
    def test_what_is_no_digest_of_the_file_is_not_confirmed(
        self, tmp_path: Path, bad: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("multistill.audio.digests.SETTLED", -1.0)
        path = tmp_path / "a.wav"
        path.write_bytes(b"one")
        digests = Digests(tmp_path / "digests.npy")
        good = self.digest(digests, path)
        digests.save()
        assert digests.confirm([str(path)] * 2, [good, good])
        assert not digests.confirm([str(path)] * 2, [good, bad])
        assert not digests.confirm([str(path), bad], [good, good])

    def test_what_was_just_written_is_not_remembered(self, tmp_path: Path) -> None:
        path = tmp_path / "a.wav"
        path.write_bytes(b"one")
        digests = Digests(tmp_path / "digests.npy")
        first = self.digest(digests, path)
        status = path.stat()
        path.write_bytes(b"two")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert self.digest(digests, path) != first

    def test_two_processes_lose_nothing_and_a_damaged_file_is_computed_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("multistill.audio.digests.SETTLED", -1.0)
        store = tmp_path / "digests.npy"
        files = {name: tmp_path / name for name in "ab"}
        both = {name: Digests(store) for name in files}
        for name, path in files.items():
            path.write_bytes(name.encode())
            self.digest(both[name], path)
        for digests in both.values():
            digests.save()
        assert np.load(store).shape == (4, 2)
        store.write_bytes(store.read_bytes()[:-5])
        digests = Digests(store)
        self.digest(digests, files["a"])
        digests.save()
        assert np.load(store).shape == (4, 1)


def big_endian(fields: str, *values: int) -> bytes:
    return struct.pack(f">{fields}", *values)


def rifx(sound: np.ndarray, bits: int, *, late: bool = False, length: int | None = None) -> bytes:
    """A RIFX file: a wav file whose numbers and samples are big-endian."""
    whole = np.round(sound * (2 ** (bits - 1) - 1)).astype(">i4")
    data = whole.tobytes() if bits == 32 else b"".join(
        int(value).to_bytes(bits // 8, "big", signed=True) for value in whole
    )  # fmt: skip
    block = bits // 8
    form = big_endian("HHIIHH", 1, 1, RATE, RATE * block, block, bits)
    other = b"LIST" + big_endian("I", 5_000) + bytes(5_000) if late else b""
    stated = len(data) if length is None else length
    body = b"WAVEfmt " + big_endian("I", 16) + form + other
    body += b"data" + big_endian("I", stated) + data
    return b"RIFX" + big_endian("I", len(body)) + body


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_big_endian_wav_files_are_read_whole_and_a_part_of_one_never(
    tmp_path: Path, bits: int, late: bool
) -> None:
    sound = np.clip(noise(FRAMES), -1, 1)
    data = rifx(sound, bits, late=late)
    path = tmp_path / "clip"
    path.write_bytes(data)
    read = read_sound(str(path)).samples
    assert len(read) == FRAMES
    assert np.allclose(read, sound, atol=1e-4)
    assert header(path)[0] == FRAMES
    for share in (0.1, 0.5, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        assert reason(path).startswith("truncated: ")
    path.write_bytes(rifx(sound, bits, late=late, length=2**31))  # not known when it was written
    assert len(read_sound(str(path)).samples) == FRAMES


def vbri(data: bytes, *, frames: int | None = None, length: int | None = None) -> bytes:
    """An MP3 file with Fraunhofer's VBRI header in its first frame instead of LAME's.

    Args:
        frames, length: what it states; default: what follows it, 0: not known.
    """
    starts = frame_starts(data)
    first = bytearray(data[: starts[1]])
    first[4:] = bytes(len(first) - 4)
    stated = (
        len(data) if length is None else length,
        len(starts) - 1 if frames is None else frames,
    )
    # Version, delay, quality; then bytes and frames, and a table of contents without entries.
    first[36:62] = b"VBRI" + big_endian("HHHIIHHHH", 1, 0, 75, *stated, 0, 1, 2, 1)
    return bytes(first) + data[starts[1] :]


def frame_starts(data: bytes) -> list[int]:
    """First bytes of the frames of an MPEG 2 layer III file at 16 kHz."""
    rates = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # kbit/s
    starts, at = [], 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        starts.append(at)
        at += 72_000 * rates[data[at + 2] >> 4] // RATE + (data[at + 2] >> 1 & 1)
    return starts


def without_header(data: bytes) -> bytes:
    return data[frame_starts(data)[1] :]


ID3 = b"ID3\4\0\0" + bytes([0, 0, 2, 0]) + bytes(256)


@pytest.mark.parametrize("tag", [b"", ID3], ids=["plain", "id3"])
@pytest.mark.parametrize("change", [vbri, without_header])
def test_mp3_files_of_variable_bit_rate_are_read_whole_whatever_states_their_length(
    tmp_path: Path, change: Callable[[bytes], bytes], tag: bytes
) -> None:
    """libsndfile guesses the length from the first frame, which may have twice the bytes."""
    data = encoded(tmp_path, "MP3", "MPEG_LAYER_III", noise(80_000))
    sizes = np.diff(frame_starts(data))
    assert len(set(sizes)) > 1
    path = tmp_path / "clip"
    path.write_bytes(data)
    expected = read_sound(str(path)).samples
    path.write_bytes(tag + change(data))
    samples = read_sound(str(path)).samples
    assert 80_000 <= len(samples) < 80_000 + 3 * 1_152
    assert header(path)[0] >= 80_000
    middle = expected[40_000:42_000]  # the delay that only LAME's header states comes on top
    likeness = np.correlate(samples[40_000:44_000], middle, "valid") / (middle**2).sum()
    assert likeness.max() > 0.999


def test_mp3_files_of_constant_bit_rate_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp3"
    sound, more = noise(80_000), {"format": "MP3", "subtype": "MPEG_LAYER_III"}
    soundfile.write(path, sound, RATE, bitrate_mode="CONSTANT", compression_level=0.5, **more)
    data = without_header(path.read_bytes())
    path.write_bytes(data)
    raw, _ = soundfile.read(path, dtype="float32")
    assert np.array_equal(read_sound(str(path)).samples, raw)
    path.write_bytes(ID3 + data + b"TAG" + bytes(125))
    assert 80_000 <= len(read_sound(str(path)).samples) < 80_000 + 3 * 1_152


def test_an_mp3_file_with_a_vbri_header_is_read_whole_and_a_part_of_it_never(
    tmp_path: Path,
) -> None:
    data = encoded(tmp_path, "MP3", "MPEG_LAYER_III", noise(80_000))
    path = tmp_path / "clip"
    whole = vbri(data)
    path.write_bytes(whole)
    assert 80_000 <= len(read_sound(str(path)).samples) < 80_000 + 3 * 1_152
    for share in (0.3, 0.6, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert reason(path).startswith("truncated: it has ")
    for share in (0.3, 0.6, 0.8):  # the bytes are unknown, the frames are not
        path.write_bytes(vbri(data, length=0)[: int(len(whole) * share)])
        assert "can be decoded" in reason(path)
    path.write_bytes(vbri(data, length=0, frames=0))
    assert len(read_sound(str(path)).samples) >= 80_000


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 6), (96_000, 1)])
def test_samples_in_memory_are_read_as_those_of_a_file(
    tmp_path: Path, rate: int, channels: int
) -> None:
    """Longer than a block of the reader, cut and whole."""
    random = np.random.default_rng(0)
    samples = random.uniform(-1, 1, ((1 << 19) // channels + 999, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    content = (tmp_path / "a.wav").read_bytes()
    for seconds in (1.0, len(samples) / rate):
        wanted = read_sound(str(tmp_path / "a.wav"), max_seconds=seconds)
        for found in (read_sound(content, max_seconds=seconds), convert(samples, rate, seconds)):
            np.testing.assert_array_equal(found.samples, wanted.samples)
            assert found.cut == wanted.cut and found.header[:3] == wanted.header[:3]


def test_a_file_made_of_tags_or_frames_is_not_counted_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"ID3" + bytes(7)
    with (tmp_path / "tags").open("w+b") as file:
        file.write(data * 1000)
        file.flush()
        part = FilePart(file.fileno(), len(data) * 1000, data)
        assert compressed.id3_length(part) == 640
    path = tmp_path / "clip"
    path.write_bytes(without_header(encoded(tmp_path, "MP3", "MPEG_LAYER_III", noise(80_000))))
    with path.open("rb") as file:
        part = FilePart(file.fileno(), path.stat().st_size, b"")
        assert compressed.mp3_without_length(part, 0) is not None
        monkeypatch.setattr(compressed, "_MOST_FRAMES", 10)
        assert compressed.mp3_without_length(part, 0) is None
