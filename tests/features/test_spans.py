"""The trace of the features stage."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pyarrow as pa
from helpers.features_case import write_corpus, write_manifest_rows

from multistill.config import FeaturesConfig
from multistill.features.actors import DecodeShard, EncodeShard
from multistill.features.encode import encode
from multistill.features.shards import plan_shards
from multistill.features.spans import TRACE
from multistill.workspace import read_json


def test_a_trace_says_when_decoders_and_encoders_worked_on_each_shard(tmp_path: Path) -> None:
    rows = write_corpus(tmp_path / "wav", [1.0, 2.0, 3.0], ["a", "b", ""])
    manifest = write_manifest_rows(tmp_path / "manifest.parquet", rows)
    settings = FeaturesConfig.model_validate({"shard_seconds": 3.0, "trace": True})
    out = tmp_path / "store"
    out.mkdir()
    plan = plan_shards(manifest, settings.shard_seconds, out)
    (out / "shards").mkdir()
    weights = {"speech": None, "text": None}
    worker = EncodeShard(settings.model_dump(), weights, str(plan.path), str(out), False, 1)
    decoder = DecodeShard(plan.path, settings.model_dump())
    for shard in range(plan.shards):
        number = pa.table({"shard": [shard]})
        worker(decoder(number) if shard else number)
    encode(manifest, settings, out)
    events = read_json(out / TRACE)["traceEvents"]
    spans: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        interval = (event["ts"], event["ts"] + event["dur"])
        spans[event["args"]["shard"]][event["name"]].append(interval)
    assert set(spans) == set(range(plan.shards))
    for of_shard in spans.values():
        assert {"decode", "speech", "text", "write", "shard"} <= set(of_shard)
        [(begun, ended)] = of_shard["shard"]
        assert all(begun <= start <= end <= ended for start, end in of_shard["speech"])
        [(_, decoded)] = of_shard["decode"]
        assert decoded <= begun
    assert not (out / "trace").exists()
