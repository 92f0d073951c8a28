"""Copies of training clips: which are encoded, of whose voices, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from helpers.features_case import make_store, write_corpus, write_manifest_rows

from multistill.config import FeaturesConfig
from multistill.features.actors import EncodeShard
from multistill.features.augmented import AUGMENTED, CLIPS, decode_copies, list_copies
from multistill.features.collate import collate
from multistill.features.copies import StoreWithCopies
from multistill.features.encode import encode
from multistill.features.identity import features_identity
from multistill.features.shards import plan_shards
from multistill.features.store import FeatureStore
from multistill.features.store_writer import Clip
from multistill.tracking.logger import NullLogger

COPIES = {"copies": 2, "speed": 1.0, "noise": 1.0}


class Case:
    """Twelve clips of four speakers, of which the last is tested and the third is validated on."""

    def __init__(self, folder: Path, **augmentation: Any) -> None:
        rows = write_corpus(folder / "wav", [0.6 + number / 10 for number in range(12)])
        for number, row in enumerate(rows):
            person = number % 4
            split = ("train", "train", "valid", "test")[person]
            row |= {"speaker": f"p{person}", "group": f"p{person}", "split": split}
        self.rows = rows
        self.manifest = write_manifest_rows(folder / "manifest.parquet", rows)
        dim = (np.zeros((1, 4), np.float32), np.zeros((0, 2), np.float32))
        # The first clip was quarantined.
        make_store(folder / "features", [Clip(row["utterance_id"], *dim) for row in rows[1:]])
        self.features = folder / "features"
        self.config = FeaturesConfig.model_validate(
            {"dtype": "float32", "augmentation": {**COPIES, **augmentation}}
        )

    def list(self, out: Path) -> list[dict[str, Any]]:
        out.mkdir()
        list_copies([self.manifest] * 2, self.features, self.config.augmentation, out)
        return pq.read_table(out / CLIPS).to_pylist()

    def decode(self, out: Path, shard_seconds: float) -> tuple[dict[str, np.ndarray], list[str]]:
        """Waves of all copies, and reasons of those that failed."""
        (out / "plan").mkdir(exist_ok=True)
        plan = plan_shards(out / CLIPS, shard_seconds, out / "plan", AUGMENTED.columns)
        waves: dict[str, np.ndarray] = {}
        reasons: list[str] = []
        for shard in range(plan.shards):
            decoded = decode_copies(plan.path, shard, self.config)
            reasons += decoded.reasons.values()
            waves |= {decoded.ids[row]: wave.samples for row, wave in decoded.waves.items()}
        return waves, reasons


def test_each_training_clip_with_features_has_its_copies(tmp_path: Path) -> None:
    case = Case(tmp_path)
    rows = case.list(tmp_path / "copies")
    train = [row["utterance_id"] for row in case.rows[1:] if row["split"] == "train"]
    assert sorted(row["utterance_id"] for row in rows) == sorted(
        f"copy-{copy}:{name}" for copy in (1, 2) for name in train
    )
    assert all(row["voices"] == [] for row in rows)


def test_babble_is_made_of_other_training_speakers(tmp_path: Path) -> None:
    case = Case(tmp_path, noise_kinds=["babble"])
    rows = case.list(tmp_path / "copies")
    speaker = {row["audio_path"]: (row["speaker"], row["split"]) for row in case.rows}
    for row in rows:
        [voice] = row["voices"]
        assert speaker[voice][1] == "train"
        assert speaker[voice][0] != speaker[row["audio_path"]][0]


def test_a_copy_depends_on_its_number_its_clip_and_the_seed_of_the_copies(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.list(tmp_path / "one")
    waves, reasons = case.decode(tmp_path / "one", shard_seconds=100.0)
    again, _ = case.decode(tmp_path / "one", shard_seconds=1.0)  # in other shards
    assert reasons == []
    assert waves.keys() == again.keys()
    assert all((waves[name] == again[name]).all() for name in waves)
    lengths = {len(wave) for wave in waves.values()}
    assert len(lengths) == len(waves), "each has a speed of its own"
    case.config = FeaturesConfig.model_validate({"augmentation": {**COPIES, "seed": 7}})
    other, _ = case.decode(tmp_path / "one", shard_seconds=100.0)
    assert all(len(other[name]) != len(waves[name]) for name in waves)


def test_copies_are_encoded_by_the_encoders_of_the_store_and_read_with_its_texts(
    tmp_path: Path,
) -> None:
    case = Case(tmp_path)
    out = tmp_path / "copies"
    case.list(out)
    store = out / "store"
    store.mkdir()
    plan = plan_shards(out / CLIPS, case.config.shard_seconds, store, AUGMENTED.columns)
    (store / "shards").mkdir()
    worker = EncodeShard(
        case.config.model_dump(), {"speech": None, "text": None}, str(plan.path), str(store), False,
        1, AUGMENTED,
    )  # fmt: skip
    for shard in range(plan.shards):
        assert worker(pa.table({"shard": [shard]}))["error"].to_pylist() == [None]
    encode(out / CLIPS, case.config, store, NullLogger(), AUGMENTED)  # finishes the store
    copies = FeatureStore(store)
    rows = {row["utterance_id"]: row for row in pq.read_table(out / CLIPS).to_pylist()}
    assert set(copies.ids) == set(rows)
    width = copies.audio_dim
    clean = make_store(
        tmp_path / "clean",
        [
            Clip(row["utterance_id"], np.full((5, width), 1.0), np.full((3, copies.text_dim), 2.0))
            for row in case.rows
        ],
        dtype="float32",
    )
    ids = [row["utterance_id"] for row in case.rows if row["split"] == "train"]
    both = StoreWithCopies(clean, copies, ids)
    assert both.count == 2
    names = both.names(ids, [0, *[1, 2] * 2, 1])
    assert names[0] == ids[0], "the clip itself"
    batch = collate(both, names)
    assert batch.text_mask.sum(dim=1).tolist() == [3] * len(ids)
    assert bool((batch.text == 2.0).all())
    for row, name in enumerate(names):
        expected = copies.audio(name) if name in copies else clean.audio(name)
        read = batch.audio[row][batch.audio_mask[row]].numpy()
        np.testing.assert_array_equal(read, np.asarray(expected, np.float32))
    assert both.names([ids[0]], [1]) == [ids[0]], "its copies could not be made"


def test_copies_do_not_change_which_store_the_recordings_have() -> None:
    plain, augmented = FeaturesConfig(), FeaturesConfig.model_validate({"augmentation": COPIES})
    assert features_identity(plain) == features_identity(augmented)
    assert plain.identity() != augmented.identity()


def test_a_copy_whose_noise_cannot_be_read_is_left_out_with_a_reason(tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.mkdir()
    (noise / "broken.wav").write_bytes(b"not audio")
    case = Case(tmp_path, noise_folder=str(noise))
    case.list(tmp_path / "copies")
    waves, reasons = case.decode(tmp_path / "copies", shard_seconds=100.0)
    assert waves == {}
    assert reasons and all(reason.startswith("not audio") for reason in reasons)
