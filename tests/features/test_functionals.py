"""openSMILE functionals: shards and their failures, with a fake extractor and with the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from helpers.features_case import tone, write_corpus, write_manifest_rows

from multistill.errors import MultistillError
from multistill.features import functionals
from multistill.features.functionals import (
    FOLDER,
    SETS,
    ExtractShard,
    Functionals,
    extract_functionals,
    finish_functionals,
    package_version,
)
from multistill.features.shards import ShardPlan, plan_shards
from multistill.tracking.logger import NullLogger


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Level and number of samples; of clips below 100 ms, NaN as openSMILE gives."""

    def extractor(name: str):
        def extract(samples: np.ndarray) -> np.ndarray:
            level = np.float32("nan") if len(samples) < 1600 else samples.std()
            return np.array([level, len(samples)], np.float32)

        return extract, ("level", "samples")

    monkeypatch.setattr(functionals, "extractor", extractor)
    yield


def extracted(rows: list[dict], home: Path, sets: tuple[str, ...]) -> tuple[ShardPlan, Path]:
    manifest = write_manifest_rows(home / "manifest.parquet", rows)
    out = home / "out"
    out.mkdir(parents=True)
    plan = plan_shards(manifest, 2.0, out)
    (out / FOLDER).mkdir()
    task = ExtractShard(plan.path, sets, out)
    for shard in range(plan.shards):
        task(pa.table({"shard": [shard]}))
    return plan, out


def test_values_are_of_the_signal_before_normalisation(tmp_path: Path, fake: None) -> None:
    rows = write_corpus(tmp_path / "wav", [1.0, 2.0, 0.5, 0.05])
    quiet = 0.1 * tone(1.0, 150, seed=0)
    soundfile.write(tmp_path / "wav" / "quiet.wav", quiet, 16_000)
    rows.append(
        rows[0] | {"utterance_id": "c/quiet", "audio_path": str(tmp_path / "wav/quiet.wav")}
    )
    rows.append(rows[0] | {"utterance_id": "c/lost", "audio_path": str(tmp_path / "lost.wav")})
    _, out = extracted(rows, tmp_path, ("egemaps", "compare"))
    # A second attempt finds every shard: it needs no Ray, which does not run here.
    summary = extract_functionals(
        tmp_path / "manifest.parquet", ["egemaps", "compare"], out, NullLogger()
    )
    assert summary == {"clips": 6, "failed": 2, "sizes": {"egemaps": 2, "compare": 2}}
    found = Functionals(out)
    assert found.sets == ["egemaps", "compare"]
    ids = ["c/lost", "c/0001", "c/0003", "c/quiet", "c/0000"]
    values, there = found.read("compare", ids)
    assert there.tolist() == [False, True, False, True, True]
    assert np.isnan(values[~there]).all()
    assert values[there, 1].tolist() == [32_000, 16_000, 16_000]
    assert values[4, 0] / values[3, 0] == pytest.approx(10, rel=0.01)


def test_if_no_clip_can_be_extracted_the_reason_is_told(tmp_path: Path, fake: None) -> None:
    plan, out = extracted(write_corpus(tmp_path / "wav", [0.05]), tmp_path, ("egemaps",))
    with pytest.raises(MultistillError, match=r"none of 1 clips \(too short for openSMILE"):
        finish_functionals(plan, ["egemaps"], out)


@pytest.mark.skipif(
    package_version() is None, reason="the package opensmile is for research only, not installed"
)
def test_the_real_package_gives_both_sets(tmp_path: Path) -> None:
    rows = write_corpus(tmp_path / "wav", [1.0, 1.5])
    _, out = extracted(rows, tmp_path, tuple(SETS))
    summary = extract_functionals(tmp_path / "manifest.parquet", list(SETS), out, NullLogger())
    assert summary["sizes"] == {"egemaps": 88, "compare": 6373}
    values, there = Functionals(out).read("egemaps", ["c/0000", "c/0001"])
    assert there.all() and np.isfinite(values).all()
    assert not np.allclose(values[0], values[1])
