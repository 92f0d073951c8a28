"""The features stage: manifest in, feature store out, on Ray Data.

    plan.arrow -> shard numbers -> [decode tasks] -> encoder actors -> shards with done markers

Ray Data schedules, retries and restarts; a shard is the unit it works in. A shard is
written by the actor that encoded it and counts as done when its marker exists, so a
killed driver, actor or node costs the shards in hand and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multistill.config import FeaturesConfig
from multistill.errors import MultistillError
from multistill.features.identity import DECODER, PADDING, resolved_weights
from multistill.features.progress import Progress, write_quarantine
from multistill.features.shards import ShardPlan, plan_shards
from multistill.features.sizing import Pools, lacking, size_pools
from multistill.features.store import (
    QUARANTINE,
    SHARDS,
    finish_store,
    read_marker,
)
from multistill.features.watchdog import watched
from multistill.tracking.logger import NullLogger, RunLogger


def encode(
    manifest: Path, config: FeaturesConfig, out: Path, logger: RunLogger | None = None
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
    logger = logger or NullLogger()
    weights = resolved_weights(config)
    logger.params({"speech": config.speech.model, "text": config.text.model, "dtype": config.dtype})
    logger.tags({f"{name}_weights": found or "no download" for name, found in weights.items()})
    out.mkdir(parents=True, exist_ok=True)
    plan = plan_shards(manifest, config.shard_seconds, out)
    (out / SHARDS).mkdir(exist_ok=True)
    markers = _finished(plan, config, out)
    state = Progress(plan, config, out, logger, markers)
    todo = [shard for shard in range(plan.shards) if shard not in markers]
    if len(todo) < plan.shards:
        logger.info(f"{plan.shards - len(todo)} of {plan.shards} shards are there already")
    if todo:
        import ray

        left = plan.seconds * len(todo) / plan.shards
        pools = size_pools(config, ray.cluster_resources(), len(todo), left)
        logger.params({"encoders": pools.encoders, "decoders": pools.decoders})
        for shard in _run(plan, config, weights, out, todo, pools):
            state.add(shard)
    state.check_budget()
    return _finish(plan, config, out, state)


def _finished(plan: ShardPlan, config: FeaturesConfig, out: Path) -> dict[int, dict[str, Any]]:
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


def _run(
    plan: ShardPlan,
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


def _finish(plan: ShardPlan, config: FeaturesConfig, out: Path, state: Progress) -> dict[str, Any]:
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
