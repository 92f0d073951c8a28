"""The features stage: manifest in, feature store out, on Ray Data.

    plan.arrow -> shard numbers -> [decode tasks] -> encoder actors -> shards with done markers

Ray Data schedules, retries and restarts; a shard is the unit it works in. A shard is
written by the actor that encoded it and counts as done when its marker exists, so a
killed driver, actor or node costs the shards in hand and nothing else.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multistill.config import FeaturesConfig
from multistill.errors import MultistillError
from multistill.features.identity import DECODER, PADDING, resolved_weights
from multistill.features.shards import Plan, plan_shards
from multistill.features.sizing import Pools, lacking, size_pools
from multistill.features.store import (
    QUARANTINE,
    SHARDS,
    finish_store,
    marker_path,
    read_marker,
)
from multistill.features.watchdog import watched
from multistill.watch import Silent, Watch


def encode(
    manifest: Path, config: FeaturesConfig, out: Path, watch: Watch | None = None
) -> dict[str, Any]:
    """Encode every utterance of a manifest into a store.

    Ray must be initialised. Shards that a killed attempt finished in `out` are kept.

    Args:
        manifest: Parquet with utterance_id, audio_path, text and duration_s.
        out: empty, or what an earlier attempt left.
    Returns:
        JSON summary: counts, seconds, rates, facts of both encoders.
    Raises:
        MultistillError: too many clips failed, the cluster lacks resources, an encoder
            cannot be loaded, or the disk is full.
    """
    watch = watch or Silent()
    weights = resolved_weights(config)
    out.mkdir(parents=True, exist_ok=True)
    plan = plan_shards(manifest, config.shard_seconds, out)
    (out / SHARDS).mkdir(exist_ok=True)
    markers = _finished(plan, config, out)
    state = _Progress(plan, config, out, watch, markers)
    todo = [shard for shard in range(plan.shards) if shard not in markers]
    if len(todo) < plan.shards:
        watch.say(f"{plan.shards - len(todo)} of {plan.shards} shards are there already")
    if todo:
        import ray

        left = plan.seconds * len(todo) / plan.shards
        pools = size_pools(config, ray.cluster_resources(), len(todo), left)
        watch.params({"encoders": pools.encoders, "decoders": pools.decoders})
        for shard in _run(plan, config, weights, out, todo, pools):
            state.add(shard)
    state.check_budget()
    return _finish(plan, config, out, state)


def _finished(plan: Plan, config: FeaturesConfig, out: Path) -> dict[int, dict[str, Any]]:
    """Markers of the shards that are done.

    When an earlier attempt was stopped by too many failures, shards with failed clips are
    taken again: what was wrong with the files may have been mended.
    """
    found = {shard: read_marker(out, shard) for shard in range(plan.shards)}
    markers = {shard: marker for shard, marker in found.items() if marker is not None}
    failed = sum(len(marker["quarantined"]) for marker in markers.values())
    if failed > config.max_quarantined * plan.clips:
        markers = {shard: m for shard, m in markers.items() if not m["quarantined"]}
    for leftover in (out / SHARDS).glob(".*"):
        leftover.unlink(missing_ok=True)
    return markers


class _Progress:
    """Counts of what is done, shown to the watch; stops the stage at too many failures."""

    def __init__(
        self,
        plan: Plan,
        config: FeaturesConfig,
        out: Path,
        watch: Watch,
        markers: dict[int, dict[str, Any]],
    ) -> None:
        self.markers: dict[int, dict[str, Any]] = {}
        self.clips = 0
        self.audio_seconds = 0.0
        self.failed = 0
        self.rates: dict[str, float] = {}
        self._plan = plan
        self._config = config
        self._out = out
        self._watch = watch
        self._first: tuple[float, int, float] | None = None
        self._shown = 0.0
        for shard, marker in markers.items():
            self._count(shard, marker)

    def add(self, shard: int) -> None:
        marker = read_marker(self._out, shard)
        if marker is None:
            raise MultistillError(
                f"the worker's shard {marker_path(self._out, shard)} is not visible here; the "
                "workspace must be a folder that every node of the cluster shares"
            )
        self._count(shard, marker)
        self._show()
        self.check_budget()

    def _count(self, shard: int, marker: dict[str, Any]) -> None:
        self.markers[shard] = marker
        self.clips += marker["clips"]
        self.audio_seconds += marker["audio_seconds"]
        self.failed += len(marker["quarantined"])

    @property
    def quarantined(self) -> list[list[str]]:
        return [row for _, marker in sorted(self.markers.items()) for row in marker["quarantined"]]

    def _show(self) -> None:
        now = time.monotonic()
        if self._first is None:
            # Rates start with the first shard: before it the workers were only starting.
            self._first = (now, self.clips, self.audio_seconds)
        last = len(self.markers) == self._plan.shards
        if now - self._shown < 0.5 and not last:
            return
        self._shown = now
        began, clips, audio = self._first
        seconds = now - began
        done = self.audio_seconds
        if done <= audio or seconds <= 0:
            self._watch.progress(self.clips, self._plan.clips, "clips")
            return
        rate = (done - audio) / seconds
        self.rates = {
            "clips_per_second": (self.clips - clips) / seconds,
            "audio_hours_per_hour": rate,
            "real_time_factor": 1 / rate,
        }
        left = max(0.0, self._plan.seconds - done) / rate
        self._watch.progress(self.clips, self._plan.clips, "clips", **self.rates, seconds_left=left)

    def record(self, summary: dict[str, Any]) -> None:
        """Throughput and counts of the whole stage, for the tracking server."""
        figures = ("quarantined", "cut", "audio_seconds", "bytes", "worker_peak_bytes", "shards")
        self._watch.metrics(
            {
                "clips": float(summary["encoded"]),
                **{name: float(summary[name]) for name in figures},
                "encoder_real_time_factor": summary["seconds"]
                / max(summary["audio_seconds"], 1e-9),
                **self.rates,
            }
        )
        if summary["cut"]:
            self._watch.say(
                f"{summary['cut']} clips were longer than {self._config.speech.max_seconds:g} s "
                "and were cut there (features.speech.long_clips)"
            )

    def check_budget(self) -> None:
        """Stop where more clips failed than the job allows, with the reasons and a list."""
        allowed = self._config.max_quarantined * self._plan.clips
        if self.failed <= allowed:
            return
        failed = self.quarantined
        write_quarantine(self._out / QUARANTINE, failed)
        reasons = Counter(row[2].split(":")[0] for row in failed).most_common(3)
        raise MultistillError(
            f"{len(failed)} of {self._plan.clips} clips cannot be encoded, allowed are "
            f"{allowed:g} (features.max_quarantined: {self._config.max_quarantined:g}); "
            + ", ".join(f"{count} x {reason}" for reason, count in reasons)
            + f", e.g. {failed[0][1]}; see {self._out / QUARANTINE}, then mend the files or "
            "raise the limit"
        )


def _run(
    plan: Plan,
    config: FeaturesConfig,
    weights: dict[str, str | None],
    out: Path,
    todo: Sequence[int],
    pools: Pools,
) -> Iterator[int]:
    """Numbers of the shards as they are finished."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

    from multistill.features.actors import DecodeShard, EncodeShard

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with DataContext.current(context), _quiet_ray_data():
        # A block a shard: the unit that Ray hands out and tries again.
        dataset = ray.data.from_items(
            [{"shard": shard} for shard in todo], override_num_blocks=len(todo)
        )
        if pools.decoders:
            dataset = dataset.map_batches(
                DecodeShard(plan.path, config.model_dump()),
                batch_size=1,
                batch_format="pyarrow",
                compute=TaskPoolStrategy(pools.decoders),
                num_cpus=1,
            )
        dataset = dataset.map_batches(
            EncodeShard,
            fn_constructor_kwargs={
                "config": config.model_dump(),
                "weights": weights,
                "plan": str(plan.path),
                "out": str(out),
                "cuda": pools.gpus_per_encoder > 0,
                "threads": int(pools.cpus_per_encoder),
            },
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=pools.encoders),
            num_cpus=pools.cpus_per_encoder,
            num_gpus=pools.gpus_per_encoder or None,
        )
        finished = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for batch in watched(finished, lambda: lacking(pools, ray.cluster_resources())):
            for row in batch.to_pylist():
                if row["error"]:
                    raise MultistillError(row["error"])
                yield row["shard"]


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Our own progress takes the place of Ray Data's execution log."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _finish(plan: Plan, config: FeaturesConfig, out: Path, state: _Progress) -> dict[str, Any]:
    """Index the shards, write the quarantine table, and count rows in against rows out."""
    quarantined = state.quarantined
    write_quarantine(out / QUARANTINE, quarantined)
    markers = [state.markers[shard] for shard in range(plan.shards)]
    encoded = sum(marker["rows"] for marker in markers)
    if encoded + len(quarantined) != plan.clips:
        raise MultistillError(
            f"{plan.clips} clips went in, but {encoded} were encoded and {len(quarantined)} "
            f"quarantined; remove the folder {out} and run again"
        )
    bytes_stored = sum(marker["bytes"] for marker in markers)
    # The encoders' wall time: of all attempts, and free of start-up.
    busy = sum(marker["encode_seconds"] for marker in markers)
    summary = {
        "clips": plan.clips,
        "encoded": encoded,
        "quarantined": len(quarantined),
        "cut": sum(marker["cut"] for marker in markers),
        "audio_seconds": round(state.audio_seconds, 3),
        "seconds": round(busy, 3),
        "bytes": bytes_stored,
        "worker_peak_bytes": max(marker["worker_peak_bytes"] for marker in markers),
        "shards": plan.shards,
        "dtype": config.dtype,
        "speech": markers[0]["speech"],
        "text": markers[0]["text"],
    }
    state.record(summary)
    finish_store(
        out,
        markers,
        {
            **summary,
            "audio_dim": markers[0]["speech"]["dim"],
            "text_dim": markers[0]["text"]["dim"],
            "decoder": DECODER,
            "padding": PADDING,
            "settings": config.identity(),
        },
    )
    return summary


def write_quarantine(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """utterance_id, audio_path, reason of every clip that was left out."""
    names = ("utterance_id", "audio_path", "reason")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    table = pa.table(columns, schema=pa.schema([(name, pa.string()) for name in names]))
    temporary = path.with_name(f".{path.name}.partial")
    pq.write_table(table, temporary)
    temporary.replace(path)
