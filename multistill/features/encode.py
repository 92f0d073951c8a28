"""The features stage: encode a manifest into a feature store with Ray Data.

    plan.arrow -> shard numbers -> [decode tasks] -> encoder actors -> shards with done markers

Ray Data schedules, retries and restarts; its unit of work is a shard. A shard is written by the
actor that encoded it and is done when its marker exists, so a killed driver, actor or node
costs only the shards in progress.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multistill.config import FeaturesConfig
from multistill.errors import MultistillError
from multistill.features.identity import resolved_weights, store_info
from multistill.features.progress import Progress
from multistill.features.quarantine import write_quarantine
from multistill.features.shards import ShardPlan, plan_shards
from multistill.features.sizing import Pools, find_shortage, size_pools
from multistill.features.spans import join
from multistill.features.store import QUARANTINE, SHARDS
from multistill.features.store_writer import finish_store, read_marker
from multistill.features.watchdog import watch
from multistill.features.waves import RECORDINGS, ShardSource
from multistill.tracking.logger import NullLogger, RunLogger


def encode(
    manifest: Path,
    config: FeaturesConfig,
    out: Path,
    logger: RunLogger | None = None,
    source: ShardSource = RECORDINGS,
) -> dict[str, Any]:
    """Encode every utterance of a manifest into a store.

    Ray must be initialised. Shards that a killed attempt finished in `out` are kept.

    Args:
        manifest: Parquet with utterance_id, audio_path, audio_digest, text and duration_s.
        out: a new folder, or that of an earlier attempt.
        source: of the waves that are encoded.

    Returns:
        JSON summary: counts, seconds, bytes, `EncoderInfo` of both encoders.

    Raises:
        MultistillError: too many clips failed, the cluster lacks resources, an encoder
            cannot be loaded, or the disk is full.
    """
    logger = logger or NullLogger()
    weights = resolved_weights(config)
    logger.params(
        {
            "speech_encoder": ", ".join(part.model for part in config.speech.parts),
            "text_encoder": config.text.model,
            "dtype": config.dtype,
        }
    )
    logger.tags({f"{name}_weights": commit or "no download" for name, commit in weights.items()})
    out.mkdir(parents=True, exist_ok=True)
    plan = plan_shards(manifest, config.shard_seconds, out, source.columns)
    (out / SHARDS).mkdir(exist_ok=True)
    markers = _finished_markers(plan, config, out)
    progress = Progress(plan, config, out, logger, markers)
    pending = [shard for shard in range(plan.shards) if shard not in markers]
    if len(pending) < plan.shards:
        logger.info(f"{plan.shards - len(pending)} of {plan.shards} shards are already finished")
    if pending:
        import ray

        seconds = plan.seconds * len(pending) / plan.shards
        pools = size_pools(config, ray.cluster_resources(), len(pending), seconds)
        logger.params({"encoder_actors": pools.encoders, "decoder_workers": pools.decoders})
        for shard in _encode_shards(plan, config, weights, out, pending, pools, source):
            progress.add(shard)
    progress.check_failures()
    return _finish(plan, config, out, progress)


def _finished_markers(
    plan: ShardPlan, config: FeaturesConfig, out: Path
) -> dict[int, dict[str, Any]]:
    """Markers of the finished shards; temporary files of killed workers are removed.

    If an earlier attempt stopped because too many clips failed, its shards with failed clips
    are encoded again, since the files may have been fixed.
    """
    markers = {}
    for shard in range(plan.shards):
        marker = read_marker(out, shard)
        if marker is not None:
            markers[shard] = marker
    failed = sum(len(marker["quarantined"]) for marker in markers.values())
    if failed > config.max_quarantined * plan.clips:
        markers = {shard: m for shard, m in markers.items() if not m["quarantined"]}
    for leftover in (out / SHARDS).glob(".*"):
        leftover.unlink(missing_ok=True)
    return markers


def _encode_shards(
    plan: ShardPlan,
    config: FeaturesConfig,
    weights: dict[str, str | None],
    out: Path,
    pending: Sequence[int],
    pools: Pools,
    source: ShardSource,
) -> Iterator[int]:
    """Encode the pending shards; yields the number of each as it finishes."""
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    from multistill.features.actors import SHARDS_AT_A_TIME, DecodeShard, EncodeShard

    with ray_data(pending) as dataset:
        if pools.decoders:
            dataset = dataset.map_batches(
                DecodeShard(plan.path, config.model_dump(), source),
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
                "source": source,
            },
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=pools.encoders,
                max_concurrent_calls_per_actor=SHARDS_AT_A_TIME,
                max_tasks_in_flight_per_actor=SHARDS_AT_A_TIME,
                enable_true_multi_threading=True,
            ),
            num_cpus=pools.cpus_per_encoder,
            num_gpus=pools.gpus_per_encoder or None,
        )
        finished = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for batch in watch(finished, lambda: find_shortage(pools, ray.cluster_resources())):
            for row in batch.to_pylist():
                if row["error"]:
                    raise MultistillError(row["error"])
                yield row["shard"]


@contextmanager
def ray_data(shards: Sequence[int]) -> Iterator[Any]:
    """A dataset of shard numbers; its log is silent, since the stage reports progress itself."""
    import ray
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with DataContext.current(context):
            # One block per shard: blocks are what Ray Data schedules and retries.
            yield ray.data.from_items(
                [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
            )
    finally:
        logger.setLevel(level)


def _finish(
    plan: ShardPlan, config: FeaturesConfig, out: Path, progress: Progress
) -> dict[str, Any]:
    """Write the quarantine table and the index, after checking that no clip was lost."""
    quarantined = progress.quarantined
    write_quarantine(out / QUARANTINE, quarantined)
    markers = [progress.markers[shard] for shard in range(plan.shards)]
    encoded = sum(marker["rows"] for marker in markers)
    if encoded + len(quarantined) != plan.clips:
        raise MultistillError(
            f"of {plan.clips} clips in the manifest, {encoded} were encoded and "
            f"{len(quarantined)} quarantined; remove the folder {out} and run again"
        )
    bytes_stored = sum(marker["bytes"] for marker in markers)
    # Of every shard, from its turn at the speech encoder to the next shard's: over all workers and
    # attempts, without the start of the encoders and the writing of each shard's last batch.
    encode_seconds = sum(marker["encode_seconds"] for marker in markers)
    summary = {
        "clips": plan.clips,
        "encoded": encoded,
        "quarantined": len(quarantined),
        "cut": sum(marker["cut"] for marker in markers),
        "silent": sum(marker["silent"] for marker in markers),
        "cut_texts": dict(sum((Counter(marker["cut_texts"]) for marker in markers), Counter())),
        "audio_seconds": round(progress.audio_seconds, 3),
        "seconds": round(encode_seconds, 3),
        "bytes": bytes_stored,
        "worker_peak_bytes": max(marker["worker_peak_bytes"] for marker in markers),
        "shards": plan.shards,
        "dtype": config.dtype,
        "speech": markers[0]["speech"],
        "text": markers[0]["text"],
    }
    progress.record(summary)
    join(out)
    finish_store(
        out,
        markers,
        {**summary, **store_info(config, plan.clips, markers[0])},
    )
    return summary
