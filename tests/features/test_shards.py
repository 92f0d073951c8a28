"""The plan of shards over a manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.features import shards
from multistill.features.shards import COLUMNS, PLAN_INFO, plan_shards, read_shard
from multistill.workspace import read_json

READ = [*COLUMNS, "voices"]
ROW = st.fixed_dictionaries(
    {
        "audio_path": st.sampled_from(["/a.wav", "/b.wav"]),
        "audio_digest": st.none() | st.just("00ff"),
        "text": st.none() | st.sampled_from(["", "말", "hello"]),
        "duration_s": st.sampled_from([0.5, 7.0, 61.0]),
        "voices": st.lists(st.sampled_from(["/c.wav", "/d.wav"]), max_size=2),
    }
)


def write(path: Path, rows: list[dict[str, object]], group: int) -> Path:
    types = {**dict.fromkeys(COLUMNS, pa.string()), "duration_s": pa.float64()}
    types["voices"] = pa.list_(pa.string())
    named = [{"utterance_id": f"c/{number}", **row} for number, row in enumerate(rows)]
    table = pa.Table.from_pylist(named, schema=pa.schema(types))
    pq.write_table(table, path, row_group_size=group)
    return path


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=30), group=st.integers(1, 30), data=st.data())
def test_the_plan_has_every_clip_once_and_depends_on_values_alone(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, object]],
    group: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "plan").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_DIGEST_ROWS", 7)
        plan = plan_shards(
            write(folder / "first.parquet", rows, len(rows)), 60.0, folder / "plan", READ
        )
        clips = [
            clip
            for number in range(plan.shards)
            for clip in read_shard(plan.path, number).to_pylist()
        ]
        named = [{"utterance_id": f"c/{n}", **row} for n, row in enumerate(rows)]
        by_length = sorted(named, key=lambda row: (row["duration_s"], row["utterance_id"]))
        assert [clip["utterance_id"] for clip in clips] == [
            row["utterance_id"] for row in by_length
        ]
        assert all(clip.items() >= rows[int(clip["utterance_id"][2:])].items() for clip in clips)
        assert plan.seconds == pytest.approx(sum(float(str(row["duration_s"])) for row in rows))
        done = folder / "plan" / "kept"
        done.mkdir()
        same = write(folder / "same.parquet", rows, group)
        assert plan_shards(same, 60.0, folder / "plan", READ) == plan
        assert done.exists(), "the same values in other row groups are the same plan"
        changed = data.draw(st.integers(0, len(rows) - 1))
        other = [{**row, "text": "other"} if n == changed else row for n, row in enumerate(rows)]
        plan_shards(write(folder / "other.parquet", other, group), 60.0, folder / "plan", READ)
        assert not done.exists(), "other values are another plan"


def test_shards_have_at_most_their_seconds_plus_a_clip(tmp_path: Path) -> None:
    seconds = np.random.default_rng(0).uniform(0.3, 20, 2000)
    out = tmp_path / "plan"
    out.mkdir()
    rows = [{"audio_path": "/a", "audio_digest": "", "text": "", "duration_s": s} for s in seconds]
    plan = plan_shards(write(tmp_path / "manifest.parquet", rows, 100), 1800.0, out)
    sums = [
        float(np.sum(read_shard(plan.path, number).column("duration_s").to_numpy()))
        for number in range(plan.shards)
    ]
    assert max(sums) <= min(1800.0, seconds.sum() / shards.TARGET_SHARDS) + 20
    assert sum(sums) == pytest.approx(seconds.sum())


def test_a_manifest_has_the_plan_that_earlier_versions_made_of_it(tmp_path: Path) -> None:
    out = tmp_path / "plan"
    out.mkdir()
    rows: list[dict[str, object]] = [
        {
            "audio_path": f"/{number}.wav",
            "audio_digest": None if number % 3 else f"{number:04x}",
            "text": "말" * (number % 4),
            "duration_s": 1.0 + 7 * number % 11,
            "voices": ["/a.wav"] * (number % 2),
        }
        for number in range(100)
    ]
    plan = plan_shards(write(tmp_path / "manifest.parquet", rows, 7), 60.0, out, READ)
    content = "8d577cba987d0d74a0d4e8b1725619a4"
    assert read_json(out / PLAN_INFO) == {
        "content": content,
        "shards": 10,
        "clips": 100,
        "seconds": 595.0,
    }
    sizes = [len(read_shard(plan.path, number)) for number in range(10)]
    assert sizes == [29, 13, 11, 9, 7, 7, 7, 6, 6, 5]
