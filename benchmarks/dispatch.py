"""What a shard costs the driver of the features stage, without its encoding.

    python benchmarks/dispatch.py [--shards 100,400,1600]

Shards without work pass through Ray Data as those of the features stage do: one block each, two
actors. Of every number: wall time, processor time of the driver, and by how much its memory grew.
The driver is one process for the whole cluster, so its processor time per shard bounds how fast
any number of workers can be fed (docs/scale.md).
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import psutil
from rows import add_row

from multistill.features.encode import ray_data


class Nothing:
    """An encoder that encodes nothing."""

    def __call__(self, batch: Any) -> Any:
        return batch


def measure(shards: int) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy

    process = psutil.Process()
    memory, started, cpu = process.memory_info().rss, time.perf_counter(), time.process_time()
    with ray_data(range(shards)) as dataset:
        listed = time.process_time() - cpu
        dataset = dataset.map_batches(
            Nothing, batch_size=1, batch_format="pyarrow", compute=ActorPoolStrategy(size=2)
        )
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        count = sum(len(batch) for batch in batches)
    assert count == shards
    return {
        "shards": shards,
        "seconds": time.perf_counter() - started,
        "driver_cpu_s": time.process_time() - cpu,
        "listing_cpu_s": listed,
        "driver_mb_more": (process.memory_info().rss - memory) / 1e6,
    }


def main() -> None:
    import ray

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", default="100,400,1600")
    given = parser.parse_args()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    measure(10)  # imports, and Ray's first workers
    for shards in map(int, given.shards.split(",")):
        print(json.dumps(add_row("dispatch", measure(shards))), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
