"""The store returns the states that were written and detects damage."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.features_case import make_store, random_clips
from helpers.paths import ROOT

from multistill.errors import MultistillError
from multistill.features.dtypes import pack, unpack
from multistill.features.store import FeatureStore
from multistill.features.store_writer import Clip, read_marker, shard_writer

DTYPES = ["float16", "bfloat16", "float32", "int8"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_clip_is_read_by_id_within_the_precision_of_the_stored_type(
    tmp_path: Path, dtype: str
) -> None:
    clips = random_clips(11)
    store = make_store(tmp_path, clips, dtype)
    assert store.ids == sorted(clip.utterance_id for clip in clips)
    for clip in reversed(clips):
        for stored, written in (
            (store.audio(clip.utterance_id), clip.audio),
            (store.text(clip.utterance_id), clip.text),
        ):
            assert stored.shape == written.shape
            peak = np.abs(written).max(axis=0, initial=0)
            tolerance = {
                "float32": np.zeros_like(written),
                "float16": np.abs(written) * 2**-11 + 1e-7,
                "bfloat16": np.abs(written) * 2**-8 + 1e-30,
                "int8": np.broadcast_to(peak / 127 * 0.501, written.shape),
            }[dtype]
            assert (np.abs(stored.astype(np.float32) - written) <= tolerance).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_gives_the_clips_in_the_order_asked_for(tmp_path: Path, dtype: str) -> None:
    store = make_store(tmp_path, random_clips(150), dtype)
    ids = [*store.ids[::-1], store.ids[3], store.ids[3]]  # more than are asked for ahead
    for modality, read in (("audio", store.audio), ("text", store.text)):
        found = list(store.each(modality, iter(ids)))
        assert len(found) == len(ids)
        for name, states in zip(ids, found, strict=True):
            np.testing.assert_array_equal(states, read(name))


def test_clips_in_file_order_are_those_of_shards_batches_and_rows(tmp_path: Path) -> None:
    clips = random_clips(11)[::-1]
    store = make_store(tmp_path, clips)
    written = [clip.utterance_id for clip in clips]
    assert store.in_file_order(store.ids) == written
    assert store.in_file_order(sorted(written[2:9:3])) == written[2:9:3]
    assert store.in_file_order([]) == []
    with pytest.raises(MultistillError, match="utterance nobody is not in the store"):
        store.in_file_order(["nobody"])


def test_int8_keeps_a_small_channel_next_to_a_large_one() -> None:
    states = np.stack([np.linspace(-1e-3, 1e-3, 50), np.linspace(-500, 500, 50)], axis=1)
    values, scales = pack(states.astype(np.float32), "int8")
    unpacked = unpack(values, scales, "int8")
    assert np.abs(unpacked[:, 0] - states[:, 0]).max() < 1e-5


def test_bfloat16_rounds_as_torch_does() -> None:
    import torch

    states = np.random.default_rng(3).normal(size=(200, 7)).astype(np.float32) * 10
    values, scales = pack(states, "bfloat16")
    expected = torch.from_numpy(states).to(torch.bfloat16).float().numpy()
    assert (unpack(values, scales, "bfloat16") == expected).all()


def test_lengths_are_read_from_the_index_alone(tmp_path: Path) -> None:
    clips = random_clips(9)
    store = make_store(tmp_path, clips)
    for path in (tmp_path / "shards").glob("*.arrow"):
        path.unlink()
    ids = [clip.utterance_id for clip in clips]
    assert store.audio_frames(ids).tolist() == [len(clip.audio) for clip in clips]
    assert store.text_tokens(ids).tolist() == [len(clip.text) for clip in clips]
    with pytest.raises(MultistillError, match=r"cannot be read.*run the job again"):
        store.audio(ids[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_values_are_views_of_the_mapped_file(tmp_path: Path, dtype: str) -> None:
    store = make_store(tmp_path, random_clips(9), dtype)
    values, _ = store.raw("audio", "u004")
    assert not values.flags.owndata
    assert not values.flags.writeable
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split() for line in maps if str(tmp_path) in line]
    address = values.__array_interface__["data"][0]
    assert any(
        int(start, 16) <= address < int(end, 16)
        for start, end in (line[0].split("-") for line in mapped)
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_documented_code_reads_it_with_plain_pyarrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    clips = random_clips(7)
    make_store(tmp_path, clips, dtype)
    guide = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", guide, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    for clip in clips:
        variables: dict[str, Any] = {}
        exec(code.group(1).replace("emodb/03a01Wa", clip.utterance_id), variables)
        assert np.allclose(variables["audio"], clip.audio, rtol=1e-3)


def test_plain_pyarrow_reads_int8_with_its_scales(tmp_path: Path) -> None:
    clips = random_clips(6)
    make_store(tmp_path, clips, "int8")
    info = json.loads((tmp_path / "features.json").read_text())
    entry = pa.ipc.open_file(str(tmp_path / "index.arrow")).read_all().to_pylist()[3]
    [file] = [shard["file"] for shard in info["shards"] if shard["shard"] == entry["shard"]]
    reader = pa.ipc.open_file(pa.memory_map(str(tmp_path / "shards" / file)))
    row = reader.get_batch(entry["batch"]).slice(entry["row"], 1).to_pylist()[0]
    audio = np.array(row["audio"], np.float32).reshape(row["audio_frames"], info["audio_dim"])
    audio = audio * np.array(row["audio_scale"], np.float32)
    [clip] = [clip for clip in clips if clip.utterance_id == entry["utterance_id"]]
    assert row["utterance_id"] == clip.utterance_id
    assert np.allclose(audio, clip.audio, atol=np.abs(clip.audio).max() / 127)


def test_a_single_changed_byte_fails_the_checksum(tmp_path: Path) -> None:
    store = make_store(tmp_path, random_clips(5))
    store.verify()
    path = sorted((tmp_path / "shards").glob("*.arrow"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(MultistillError, match=path.name):
        store.verify()


def test_only_the_clip_with_a_value_beyond_float16_is_refused(tmp_path: Path) -> None:
    good, bad = random_clips(2)
    bad = Clip(bad.utterance_id, bad.audio + 1e5, bad.text)
    with shard_writer(tmp_path, 0, "float16", 8, 4, {}) as writer:
        [(name, reason)] = writer.append([good, bad])
    assert name == bad.utterance_id
    assert "bfloat16" in reason
    marker = read_marker(tmp_path, 0)
    assert marker is not None
    assert marker["rows"] == 1


def test_a_failed_shard_leaves_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="full"),
        shard_writer(tmp_path, 0, "float16", 8, 4, {}) as writer,
    ):
        writer.append(random_clips(2))
        raise OSError(28, "disk full")
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_missing_or_truncated_shard_is_not_done(tmp_path: Path) -> None:
    make_store(tmp_path, random_clips(4))
    marker = read_marker(tmp_path, 0)
    assert marker is not None
    path = tmp_path / "shards" / marker["file"]
    path.write_bytes(path.read_bytes()[:-1])
    assert read_marker(tmp_path, 0) is None
    path.unlink()
    assert read_marker(tmp_path, 0) is None


def test_two_overlapping_attempts_at_a_shard_leave_one_complete_shard(tmp_path: Path) -> None:
    first, second = random_clips(2, seed=1), random_clips(2, seed=2)
    with shard_writer(tmp_path, 0, "float16", 8, 4, {}) as slow:
        slow.append(first)
        temporary = next((tmp_path / "shards").iterdir())
        # Another process would have a temporary file of another name.
        moved = temporary.rename(temporary.with_name(".moved"))
        with shard_writer(tmp_path, 0, "float16", 8, 4, {}) as fast:
            fast.append(second)
        moved.rename(temporary)
    marker = read_marker(tmp_path, 0)
    assert marker is not None
    reader = pa.ipc.open_file(pa.memory_map(str(tmp_path / "shards" / marker["file"])))
    assert reader.get_batch(0).column("audio_frames")[0].as_py() == len(first[0].audio)


def test_a_folder_without_a_store_is_reported_with_advice(tmp_path: Path) -> None:
    with pytest.raises(MultistillError, match=r"not a complete feature store.*run the job again"):
        FeatureStore(tmp_path)


def test_an_unknown_utterance_is_reported(tmp_path: Path) -> None:
    store = make_store(tmp_path, random_clips(2))
    assert "u000" in store
    assert "nobody" not in store
    with pytest.raises(MultistillError, match=r"nobody.*quarantine"):
        store.audio("nobody")


def test_a_pickled_store_contains_only_its_folder(tmp_path: Path) -> None:
    store = make_store(tmp_path, random_clips(3))
    store.audio("u001")
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert (pickle.loads(pickled).audio("u001") == store.audio("u001")).all()
