"""Advice of the features stage and of what reads its store: provoked and followed."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.advice import says, told
from helpers.features_case import make_store, random_clips, tone, write_corpus, write_manifest_rows

from multistill.config import CopiesConfig, FeaturesConfig
from multistill.encoders.base import EncoderInfo
from multistill.errors import MultistillError
from multistill.features import functionals
from multistill.features.actors import MAX_ATTEMPTS, EncodeShard, count_attempts
from multistill.features.augmented import CLIPS, list_copies
from multistill.features.cache import CACHE_VARIABLE, local_copy, open_store
from multistill.features.decode import Wave, normalize
from multistill.features.encode import _finish, _finished_markers
from multistill.features.progress import Progress
from multistill.features.shards import ShardPlan, plan_shards
from multistill.features.sizing import Pools, find_shortage, size_pools
from multistill.features.store import FeatureStore
from multistill.features.store_writer import finish_store, read_marker, shard_writer
from multistill.features.watchdog import watch
from multistill.features.waves import DecodedShard
from multistill.features.worker import ShardEncoder
from multistill.pipeline import jobfile
from multistill.pipeline.recipes import steps_of
from multistill.tracking.logger import NullLogger
from multistill.typing import FloatArray
from multistill.workspace import Workspace, read_json, write_json

WEIGHTS = {"speech": None, "text": None}


def config(**keys: Any) -> FeaturesConfig:
    return FeaturesConfig.model_validate({"shard_seconds": 6.0, **keys})


def encode(manifest: Path, out: Path, **keys: Any) -> list[str | None]:
    """Run the stage's worker on every shard without Ray; returns its errors."""
    settings = config(**keys)
    out.mkdir(exist_ok=True)
    plan = plan_shards(manifest, settings.shard_seconds, out)
    (out / "shards").mkdir(exist_ok=True)
    worker = EncodeShard(settings.model_dump(), WEIGHTS, str(plan.path), str(out), False, 1)
    finished = _finished_markers(plan, settings, out)
    pending = [shard for shard in range(plan.shards) if shard not in finished]
    errors = [worker(pa.table({"shard": [shard]})).to_pylist()[0]["error"] for shard in pending]
    markers = {n: m for n in range(plan.shards) if (m := read_marker(out, n)) is not None}
    progress = Progress(plan, settings, out, NullLogger(), markers)
    progress.check_failures()
    _finish(plan, settings, out, progress)
    return errors


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = write_corpus(tmp_path / "wav", [1.0, 1.5, 2.0])
    return write_manifest_rows(tmp_path / "manifest.parquet", rows)


def test_clips_that_cannot_be_encoded(manifest: Path, tmp_path: Path) -> None:
    broken, out = tmp_path / "wav" / "0001.wav", tmp_path / "out"
    broken.write_bytes(b"")
    with pytest.raises(MultistillError) as refused:
        encode(manifest, out)
    says("see {}, then fix the files or raise the limit", refused.value)
    [row] = pq.read_table(out / "quarantine.parquet").to_pylist()
    assert row["audio_path"] == str(broken) and row["audio_path"] in str(refused.value)
    encode(manifest, out, max_quarantined=0.4)
    assert len(FeatureStore(out)) == 2
    soundfile.write(broken, tone(1.5), 16_000)
    encode(manifest, out)
    assert len(FeatureStore(out)) == 3


def test_no_clip_that_can_be_encoded(manifest: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "wav").iterdir():
        path.write_bytes(b"")
    with pytest.raises(MultistillError) as refused:
        encode(manifest, tmp_path / "out", max_quarantined=1.0)
    says("no clip could be encoded; see {}", refused.value)
    table = pq.read_table(str(refused.value).rpartition("see ")[2])
    assert len(table) == 3 and all(table["reason"].to_pylist())


def test_a_manifest_without_utterances(manifest: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(manifest).slice(0, 0), empty)
    with told("has no utterances; check `corpora`"):
        plan_shards(empty, 60, tmp_path)
    assert plan_shards(manifest, 60, tmp_path).clips == 3


def test_a_store_that_lost_clips_or_holds_one_twice(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(manifest, out)
    marker = next((out / "shards").glob("*.json"))
    write_json(marker, {**read_json(marker), "rows": 0})
    with told("were encoded and {} quarantined; remove the folder {} and run again"):
        encode(manifest, out)
    shutil.rmtree(out)
    encode(manifest, out)
    for shard in (7, 8):
        with shard_writer(out, shard, "float16", 8, 4, {}) as writer:
            writer.append(random_clips(1))
    twice = [read_marker(out, shard) for shard in (7, 8)]
    with told("holds the same utterance twice; remove the folder and run again"):
        finish_store(out, [marker for marker in twice if marker], {})
    shutil.rmtree(out)
    encode(manifest, out)
    assert len(FeatureStore(out)) == 3


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        ("features.json", "or, if it is of this job, remove it and run the job again"),
        ("index.arrow", "or, if it is of this job, remove it and run the job again"),
        ("format", "this version reads {}; remove the folder and run the job again"),
        ("shard", "cannot be read ({}); remove the folder {} and run the job again"),
        ("bit", "does not match its checksum; remove the folder {} and run the job again"),
    ],
)
def test_a_damaged_store(manifest: Path, tmp_path: Path, damage: str, advice: str) -> None:
    out = tmp_path / "out"
    encode(manifest, out)
    [shard] = (out / "shards").glob("*.arrow")
    if damage == "format":
        write_json(out / "features.json", {**read_json(out / "features.json"), "format": 0})
    elif damage == "shard":
        shard.write_bytes(b"")
    elif damage == "bit":
        content = shard.read_bytes()
        shard.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    else:
        (out / damage).unlink()
    with told(advice):
        store = FeatureStore(out)
        if damage == "shard":
            store.audio("c/0000")
        store.verify()
    shutil.rmtree(out)
    encode(manifest, out)
    store = FeatureStore(out)
    store.verify()
    assert np.isfinite(store.audio("c/0000").astype(np.float32)).all()


def test_an_utterance_that_is_not_in_the_store(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "wav" / "0002.wav").write_bytes(b"")
    encode(manifest, out, max_quarantined=0.5)
    with told("is not in the store {}; see its {}"):
        FeatureStore(out).rows(["c/0002"])
    table = pq.read_table(out / "quarantine.parquet")
    assert table["utterance_id"].to_pylist() == ["c/0002"]


def test_a_store_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, local = tmp_path / "remote", tmp_path / "local"
    address = remote.as_uri()
    monkeypatch.setenv(CACHE_VARIABLE, str(local))
    remote.mkdir()
    with told("check the address, the credentials, and that the store was copied there completely"):
        open_store(address)
    make_store(tmp_path / "original", random_clips(5))
    shutil.copytree(tmp_path / "original", remote, dirs_exist_ok=True)
    for path in remote.rglob("*.arrow"):
        path.write_bytes(path.read_bytes()[:-8])
    with told("does not match its checksums; copy it there again"):
        open_store(address)
    shutil.copytree(tmp_path / "original", remote, dirs_exist_ok=True)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("multistill.features.cache.fs.copy_files", full)
        with told("free some space or name another folder with {}, then run again"):
            open_store(address)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "another"))
    assert open_store(address).folder.parent == tmp_path / "another"
    FeatureStore(local_copy(address, local)).verify()


def test_a_full_disk_of_a_worker(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    out.mkdir()
    plan = plan_shards(manifest, 60, out)
    (out / "shards").mkdir()
    worker = EncodeShard(config().model_dump(), WEIGHTS, str(plan.path), str(out), False, 1)
    monkeypatch.setattr("multistill.features.store_writer.os.fsync", full)
    [result] = worker(pa.table({"shard": [0]})).to_pylist()
    says("free some space and run the same command again: {} are kept", result["error"])
    monkeypatch.undo()
    assert encode(manifest, out) == [None]


def test_resources_that_the_cluster_lacks() -> None:
    small = {"CPU": 2.0}
    for keys, fewer in (
        ({"encoders": 3}, {"encoders": 2}),
        ({"encoders": 1, "gpus_per_encoder": 1.0}, {"encoders": 1, "gpus_per_encoder": 0.0}),
        ({"encoders": 2, "decoders": 1}, {"encoders": 1, "decoders": 1}),
    ):
        with told(
            "lower `features.encoders`, `features.gpus_per_encoder` or `features.decoders`, "
            "or give Ray more (`resources`)"
        ):
            size_pools(config(**keys), small, 4, 100.0)
        size_pools(config(**fewer), small, 4, 100.0)
        size_pools(config(**keys), {"CPU": 4.0, "GPU": 1.0}, 4, 100.0)


def test_a_workspace_that_nodes_do_not_share(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    plan = plan_shards(manifest, 60, out)
    (out / "shards").mkdir()
    progress = Progress(plan, config(), out, NullLogger(), {})
    with told("the workspace must be a folder that all nodes share"):
        progress.add(0)  # a worker wrote it on another node
    encode(manifest, out)
    progress.add(0)
    assert progress.clips == 3


def test_a_cluster_that_lost_its_nodes() -> None:
    def waiting() -> Iterator[int]:
        time.sleep(30)
        yield 0

    pools = Pools(encoders=2, cpus_per_encoder=1, gpus_per_encoder=0.0, decoders=0)
    left = {"CPU": 1.0}
    with told("run the same command again to continue on the remaining resources"):
        list(watch(waiting(), lambda: find_shortage(pools, left), grace_s=0.05, poll_s=0.01))
    again = size_pools(config(), left, 4, 100.0)
    assert find_shortage(again, left) is None
    assert list(watch(iter([1, 2]), lambda: find_shortage(again, left))) == [1, 2]


class Encoder:
    """A speech encoder with little memory and large states."""

    minimum_samples, hop, windowed = 400, 320, True
    info = EncoderInfo("fake", "none", 2, 0, (), "mask")

    def __init__(self, memory: int = 10**9, scale: float = 1.0) -> None:
        self.memory, self.scale = memory, scale
        self.batches: list[int] = []

    def frames(self, samples: int) -> int:
        return (samples - 400) // 320 + 1

    def encode(self, waves: list[FloatArray]) -> list[FloatArray]:
        import torch

        size = len(waves) * max(map(len, waves))
        if size > self.memory:
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append(size)
        return [np.full((self.frames(len(w)), 2), self.scale, np.float32) for w in waves]

    def verify(self, waves: list[FloatArray]) -> None: ...


def written(out: Path, encoder: Encoder, seconds: list[float], **keys: Any) -> list[Any]:
    """Quarantined clips of a shard with clips of these lengths."""
    names = [f"u{number}" for number in range(len(seconds))]
    waves = {n: Wave(normalize(tone(length, seed=n))) for n, length in enumerate(seconds)}
    worker = ShardEncoder(config(**keys), WEIGHTS, "cpu")
    worker.speech = encoder
    shard = DecodedShard(names, [f"{n}.wav" for n in names], [""] * len(names), waves)
    found: list[Any] = worker.write(shard, 0, out)["quarantined"]
    return found


def test_a_clip_that_does_not_fit_the_memory(tmp_path: Path) -> None:
    encoder = Encoder(memory=16_000 * 3)
    [[name, _, reason]] = written(tmp_path, encoder, [1.0, 9.0])
    assert name == "u1" and "9.0 s do not fit" in reason
    says(
        "set features.speech.long_clips: window, with max_seconds and window_seconds below that",
        reason,
    )
    speech = {"long_clips": "window", "max_seconds": 2.5, "window_seconds": 2.5}
    assert written(tmp_path, encoder, [1.0, 9.0], speech=speech) == []


def test_states_that_do_not_fit_the_stored_type(tmp_path: Path) -> None:
    [[_, _, reason]] = written(tmp_path, Encoder(scale=1e6), [1.0])
    says("{}; use `features.dtype: bfloat16`", reason)
    assert written(tmp_path, Encoder(scale=1e6), [1.0], dtype="bfloat16") == []


def test_a_shard_that_crashes_its_workers(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "shards").mkdir(parents=True)
    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(RuntimeError), count_attempts(out, 0):
            raise RuntimeError("killed")
    with told("lower `features.batch_seconds` or `features.encoders`"), count_attempts(out, 0):
        pass
    plan = ShardPlan(out / "plan.arrow", shards=1, clips=3, seconds=4.5)
    assert _finished_markers(plan, config(), out) == {}
    with count_attempts(out, 0):  # the next run counts anew
        pass
    large, small = Encoder(), Encoder()
    written(tmp_path / "a", large, [1.0] * 12, batch_seconds=12)
    written(tmp_path / "b", small, [1.0] * 12, batch_seconds=3)
    assert max(small.batches) == max(large.batches) / 4
    assert size_pools(config(encoders=1), {"CPU": 8.0}, 9, 1e5).encoders == 1


def test_opensmile_that_is_missing_or_extracts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = "name: t\ncorpora: [{kind: demo}]\nrecipe: features-only\n"
    with_key = keep + "evaluation: {opensmile: [egemaps]}\n"

    def problems(text: str) -> list[str]:
        job = jobfile.parse(text, "t.yaml")
        return [each for step in steps_of(job, Workspace(tmp_path)) for each in step.problems()]

    monkeypatch.setattr(functionals, "package_version", lambda: None)
    [sentence] = problems(with_key)
    says(
        "run `pip install opensmile` (for research only, see its licence), or remove the key",
        sentence,
    )
    assert problems(keep) == []
    monkeypatch.setattr(functionals, "package_version", lambda: "2.6.0")
    assert problems(with_key) == []

    def extractor(name: str) -> Any:
        return (lambda samples: np.full(2, np.nan, np.float32)), ("a", "b")

    monkeypatch.setattr(functionals, "extractor", extractor)
    rows = write_corpus(tmp_path / "wav", [0.5])
    manifest = write_manifest_rows(tmp_path / "m.parquet", rows)
    out = tmp_path / "out"
    out.mkdir()
    plan = plan_shards(manifest, 10.0, out)
    (out / functionals.FOLDER).mkdir()
    functionals.ExtractShard(plan.path, ["egemaps"], out)(pa.table({"shard": [0]}))
    with told("remove `evaluation.opensmile`, or install another version of the package"):
        functionals.finish_functionals(plan, ["egemaps"], out)


def test_copies_without_recordings_of_noise_or_without_training_clips(tmp_path: Path) -> None:
    keep = "name: t\ncorpora: [{kind: demo}]\nfeatures: {augmentation: {copies: 1%s}}\n"

    def problems(more: str) -> list[str]:
        job = jobfile.parse(keep % more, "t.yaml")
        return [each for step in steps_of(job, Workspace(tmp_path)) for each in step.problems()]

    noise = tmp_path / "noise"
    for name in ("noise_folder", "rooms"):
        [sentence] = problems(f", {name}: {noise}")
        says(
            "there is no audio file in {}; give a folder of recordings, or remove `{}`, and sounds",
            sentence,
        )
        assert problems("") == []
    noise.mkdir()
    soundfile.write(noise / "a.wav", tone(0.2), 16_000)
    assert problems(f", rooms: {noise}, noise_folder: {noise}") == []

    clips = random_clips(2)
    store = make_store(tmp_path / "store", clips)
    row = {"speaker": "p", "group": "p", "audio_path": "x.wav", "duration_s": 1.0, "split": "train"}
    settings = CopiesConfig(copies=1)

    def listed(name: str) -> Path:
        manifest = write_manifest_rows(tmp_path / "m.parquet", [{**row, "utterance_id": name}])
        list_copies([manifest], store.folder, settings, tmp_path)
        return tmp_path / CLIPS

    with told("to make copies of; look into quarantine.parquet of the features"):
        listed("quarantined")
    assert listed(clips[0].utterance_id).exists()
