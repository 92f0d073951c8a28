"""The figures of a GPU: features, training, search, predictions; called by benchmarks/gpu.sh.

    python benchmarks/gpu.py WHAT --results FILE [--cpu]

WHAT is features, training, search or serving; FILE gets a row of the benchmark "gpu". `--cpu` does
the same in a tiny size on CPUs, to see that it works; its figures mean nothing.

- features: `features.py --only compare`, a wav2vec2 of the large shape;
- training: `training.py gpu`, a model of the paper's size in bfloat16;
- search: real trials of a light student, several at once on the GPU;
- serving: a Predictor over a wav2vec2 of the base shape, clips of 3 s one by one and in batches.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import add_row

HERE = Path(__file__).parent
BATCH = 16
COMMANDS = {
    ("features", False): "features.py --only compare --encoder large --cuda --clips 4000 "
    "--published-clips 300 --batch-seconds 80 --shard-seconds 600",
    ("features", True): "features.py --only compare --encoder tiny --clips 24 --published-clips 8",
    ("training", False): "training.py gpu --clips 2048 --batch-size 64",
}


def other_benchmark(what: str, cpu: bool) -> dict[str, Any]:
    """Figures of another script; the row of its own is in a temporary file."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "rows.jsonl"
        script, *options = COMMANDS[what, cpu].split()
        command = [sys.executable, str(HERE / script), *options, "--results", str(results)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        row = json.loads(results.read_text(encoding="utf-8").splitlines()[-1])
    return {**row, "what": what, "of": row["command"]}


def search(cpu: bool) -> dict[str, Any]:
    """Trials that train, without early stopping, on inputs of encoder size."""
    import ray
    from training import make_inputs, make_task

    from multistill.config import SearchConfig, SearchParameter
    from multistill.search.study import search as run_search

    trials, clips, epochs = (2, 32, 2) if cpu else (24, 2048, 6)
    config = SearchConfig(
        trials=trials,
        epochs=epochs,
        grace_epochs=epochs,
        gpus_per_trial=0.0 if cpu else 0.25,
        concurrent=2 if cpu else 4,
        space={"train.learning_rate": SearchParameter(low=1e-5, high=1e-3, log=True)},
    )
    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=4)
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder), clips, 3.0, valid_every=5)
        task = make_task(inputs, "light-student", epochs=epochs, batch_size=BATCH)
        summary = run_search(task, config, 0, Path(folder) / "search", fingerprint="gpu")
    ray.shutdown()
    return {
        "what": "search",
        "trials": trials,
        "concurrency": summary["concurrency"],
        "trials_per_minute": 60 * trials / summary["seconds"],
        "to_first_step_s": summary["start_seconds"],
        "training_share": summary["training_share"],
    }


def serving(cpu: bool) -> dict[str, Any]:
    """Predictions of a model whose encoder is large, with what each call checks and copies."""
    from features import save_encoder

    from multistill import Input, Predictor
    from multistill.config import FeaturesConfig
    from multistill.encoders import side_by_side
    from multistill.features.identity import resolved_weights
    from multistill.models.build import build
    from multistill.models.files import ModelInfo, save_model
    from multistill.models.presets import resolve

    device = "cpu" if cpu else "cuda"
    calls = 3 if cpu else 100
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = save_encoder("tiny" if cpu else "base", folder / "encoder")
        config = FeaturesConfig.model_validate({"speech": {"model": str(encoder)}})
        info = side_by_side.load(config.speech, resolved_weights(config), torch.device("cpu")).info
        speech = {**info.to_dict(), "settings": config.identity()["speech"]}
        described = ModelInfo(
            "student", ("a", "b"), encoders={"speech": speech}, dtype=config.dtype
        )
        spec = resolve("small-audio-student", {"num_classes": 2})
        save_model(build(spec, info.dim, 1), folder / "model", described)
        predictor = Predictor.load(folder / "model", device)
    samples = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    inputs = [Input((samples, 16_000))] * BATCH
    predictor.predict_batch(inputs)
    alone = [timed(lambda: predictor.predict_samples(samples)) for _ in range(calls)]
    together = sum(timed(lambda: predictor.predict_batch(inputs)) for _ in range(calls))
    return {
        "what": "serving",
        "p50_ms": 1000 * float(np.percentile(alone, 50)),
        "p95_ms": 1000 * float(np.percentile(alone, 95)),
        "per_second": BATCH * calls / together,
    }


def timed(function: Any) -> float:
    """Seconds of a call; its answer is on the CPU, so that the GPU is done."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["features", "training", "search", "serving"])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    given = parser.parse_args()
    if not given.cpu:
        torch.cuda.init()  # refuses without a GPU, and names it in the row
    if (given.what, given.cpu) in COMMANDS:
        figures = other_benchmark(given.what, given.cpu)
    elif given.what == "search":
        figures = search(given.cpu)
    elif given.what == "serving":
        figures = serving(given.cpu)
    else:
        print("`training` needs a GPU; left out")
        return
    figures = {name: value for name, value in figures.items() if name not in ("benchmark", "seed")}
    print(json.dumps(add_row("gpu", figures, file=given.results)))


if __name__ == "__main__":
    main()
