"""Speed of encoding and of reading the store, as ratios measured in one run on the same clips.

    python benchmarks/features.py                        CPU, a small wav2vec2
    python benchmarks/features.py --encoder large --cuda the shape of wav2vec2-large, on a GPU
    python benchmarks/features.py --emodb ../shared/data/emodb    adds the UAR of int8
    python benchmarks/features.py --only kill            5,000 clips, killed twice before it ends

Weights are random, since speed does not depend on them. The published procedure encodes one clip
at a time in float32 and saves one `.pt` file per clip. The bare forward pass runs the same batches
on decoded waves and discards the states.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from rows import add_row

from multistill.audio import SAMPLE_RATE
from multistill.config import FeaturesConfig
from multistill.features.collate import collate, plan_batches
from multistill.features.decode import decode
from multistill.features.encode import encode
from multistill.features.store import FeatureStore
from multistill.features.worker import ShardEncoder, Window, batch_windows
from multistill.hardware import cores

SHARDS_TO_KILL = 120
"""Of about 150 for 5,000 clips; the run is killed after a third and after two thirds of these."""

SHAPES = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "conv_dim": (64,) * 7},
    "small": {"hidden_size": 384, "num_hidden_layers": 6, "conv_dim": (256,) * 7},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "conv_dim": (512,) * 7},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "conv_dim": (512,) * 7},
}


def save_encoder(shape: str, folder: Path) -> Path:
    """Save a layer-norm wav2vec2 of this shape with random weights."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    keys = SHAPES[shape]
    settings = Wav2Vec2Config(
        **keys,
        num_attention_heads=keys["hidden_size"] // 64,
        intermediate_size=4 * keys["hidden_size"],
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
    )
    torch.manual_seed(0)
    Wav2Vec2Model(settings).save_pretrained(folder)
    return folder


def write_corpus(
    folder: Path, clips: int, files: int = 400, lengths: np.ndarray | None = None
) -> Path:
    """Write a manifest of clips, which share `files` noise files.

    Args:
        lengths: seconds of the files; default: as in dialogues.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    seconds = random.gamma(4.0, 0.9, files).clip(0.4, 20.0) if lengths is None else lengths
    files = len(seconds)
    for number, length in enumerate(seconds):
        noise = random.normal(0, 0.1, round(length * SAMPLE_RATE)).astype(np.float32)
        soundfile.write(folder / f"{number:04d}.wav", noise, SAMPLE_RATE)
    rows = [
        {
            "utterance_id": f"clip-{row:06d}",
            "audio_path": str(folder / f"{row % files:04d}.wav"),
            "audio_digest": "",
            "text": "오늘은 정말 힘든 하루 였어 그래도 괜찮아",
            "duration_s": float(duration),
        }
        for row, duration in enumerate(np.resize(seconds, clips))
    ]
    path = folder / f"manifest-{clips}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@contextmanager
def cluster(cpus: int) -> Iterator[None]:
    import ray

    ray.init(
        address="local",  # do not connect to a cluster that runs on this machine
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=2_000_000_000 if torch.cuda.is_available() else 300_000_000,
    )
    try:
        yield
    finally:
        ray.shutdown()


def load(config: FeaturesConfig, device: str) -> ShardEncoder:
    return ShardEncoder(config, {"speech": None, "text": None}, device)


def waves_and_texts(manifest: Path) -> list[tuple[np.ndarray, str]]:
    rows = pq.read_table(manifest).to_pylist()
    return [
        (decode(row["audio_path"], max_seconds=30, long_clips="cut").samples, row["text"])
        for row in rows
    ]


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_bare(config: FeaturesConfig, manifest: Path, device: str) -> float:
    """Seconds of both models' forward passes on bucketed batches of decoded waves."""
    encoder = load(config, device)
    clips = waves_and_texts(manifest)
    windows = [Window(row, 0, wave) for row, (wave, _) in enumerate(clips)]
    batches = list(batch_windows(windows, config.batch_seconds, equal=False))
    encoder.speech.encode([window.samples for window in batches[0]])
    synchronize(device)
    started = time.perf_counter()
    for batch in batches:
        encoder.speech.encode([window.samples for window in batch])
        encoder.text.encode([clips[window.row][1] for window in batch])
    synchronize(device)
    return time.perf_counter() - started


def time_published(config: FeaturesConfig, manifest: Path, out: Path, device: str) -> float:
    """Seconds of encoding one clip at a time in float32, with one file each for audio and text."""
    out.mkdir()
    encoder = load(config, device)
    rows = pq.read_table(manifest).to_pylist()
    started = time.perf_counter()
    for row in rows:
        wave = decode(row["audio_path"], max_seconds=30, long_clips="cut").samples
        [audio] = encoder.speech.encode([wave])
        [text] = encoder.text.encode([row["text"]])
        torch.save(torch.from_numpy(audio.copy()), out / f"{row['utterance_id']}.pt")
        torch.save(torch.from_numpy(text.copy()), out / f"{row['utterance_id']}.txt.pt")
    return time.perf_counter() - started


def time_pipeline(
    config: FeaturesConfig, manifest: Path, out: Path
) -> tuple[float, dict[str, Any]]:
    """Wall seconds of the whole stage on a running Ray, including the start of the workers."""
    started = time.perf_counter()
    summary = encode(manifest, config, out)
    return time.perf_counter() - started, summary


def per_second(action: Callable[[], int], at_least: float = 1.0) -> float:
    """Items per second of an action that returns their number, after one warm-up call.

    Args:
        at_least: seconds to measure.
    """
    action()
    done = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < at_least:
        done += action()
    return done / elapsed


def time_reads(store: FeatureStore, files: Path) -> tuple[float, float]:
    """Clips per second in random order: from the store, and from one file per clip."""
    in_both = [name for name in store.ids if (files / f"{name}.pt").exists()]
    order = np.random.default_rng(1).permutation(in_both)[:200].tolist()

    def from_store() -> int:
        return len([float(store.audio(name)[-1, -1]) for name in order])

    def from_files() -> int:
        return len([float(torch.load(files / f"{name}.pt")[-1, -1]) for name in order])

    return per_second(from_store), per_second(from_files)


def time_training(store: FeatureStore, batch_size: int, device: str) -> tuple[float, float]:
    """Batches per second of the reader, and of a training step of a paper-size student."""
    from multistill.models.build import build
    from multistill.models.presets import resolve

    model = build(resolve("paper-student", {}), store.audio_dim, store.text_dim).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    plan = plan_batches(store.audio_frames(store.ids), batch_size, seed=0)
    batches = [[store.ids[row] for row in rows] for rows in plan if len(rows) == batch_size]

    def read() -> int:
        return len([collate(store, ids, 512) for ids in batches])

    batch = collate(store, batches[len(batches) // 2], 512).to(device)
    target = torch.full((batch_size, 7), 1 / 7, device=device)

    def step() -> int:
        optimizer.zero_grad()
        logits = model(batch.audio, batch.audio_mask, batch.text, batch.text_mask).logits
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
        synchronize(device)
        return 1

    return per_second(read, 2.0), per_second(step, 5.0)


def stored_bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def uar_of(emodb: Path, folder: Path, config: dict[str, Any]) -> dict[str, float]:
    """Unweighted recall of a linear probe for each stored type, leaving one speaker out."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    paths = sorted((emodb / "wav").glob("*.wav"))
    rows = [
        {
            "utterance_id": path.stem,
            "audio_path": str(path),
            "text": "",
            "audio_digest": "",
            "duration_s": soundfile.info(path).duration,
        }
        for path in paths
    ]
    manifest = folder / "emodb.parquet"
    pq.write_table(pa.Table.from_pylist(rows), manifest)
    recall = {}
    for dtype in ("float32", "float16", "int8"):
        out = folder / f"emodb-{dtype}"
        encode(manifest, FeaturesConfig.model_validate({**config, "dtype": dtype}), out)
        store = FeatureStore(out)
        states = [store.audio(name).astype(np.float32) for name in store.ids]
        pooled = np.stack([np.concatenate([s.mean(0), s.std(0)]) for s in states])
        label = np.array([name[5] for name in store.ids])
        speaker = np.array([name[:2] for name in store.ids])
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=1000))
        predicted = cross_val_predict(probe, pooled, label, groups=speaker, cv=LeaveOneGroupOut())
        recall[dtype] = float(recall_score(label, predicted, average="macro"))
    return recall


def one_size(
    config: FeaturesConfig, manifest: Path, cpus: int, into: Path | None
) -> dict[str, float]:
    """Seconds and peak memory for a corpus of one size, measured in a separate process.

    `ms_per_clip` is wall time including the start of the workers; `encoder_ms_per_clip` is the
    sum of the encoders' time.
    """
    with cluster(cpus), tempfile.TemporaryDirectory() as out:
        seconds, summary = time_pipeline(config, manifest, into or Path(out) / "store")
    return {
        "clips": summary["clips"],
        "workers": cpus,
        "seconds": seconds,
        "ms_per_clip": 1000 * seconds / summary["clips"],
        "encoder_ms_per_clip": 1000 * summary["seconds"] / summary["clips"],
        "driver_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worker_mb": summary["worker_peak_bytes"] / 2**20,
    }


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device = "cuda" if options.cuda else "cpu"
    model = save_encoder(options.encoder, folder / "encoder")
    base: dict[str, Any] = {
        "speech": {"model": str(model), "precision": "bfloat16" if options.cuda else "float32"},
        "batch_seconds": options.batch_seconds,
        "shard_seconds": options.shard_seconds,
    }
    config = FeaturesConfig.model_validate(base)
    manifest = write_corpus(folder / "corpus", options.clips)
    subset = write_corpus(folder / "corpus", options.published_clips)
    audio_s = sum(pq.read_table(manifest, columns=["duration_s"])[0].to_pylist())
    subset_s = sum(pq.read_table(subset, columns=["duration_s"])[0].to_pylist())
    published = time_published(
        FeaturesConfig.model_validate({**base, "speech": {"model": str(model)}}),
        subset,
        folder / "files",
        device,
    )
    bare = time_bare(config, manifest, device)
    with cluster(options.cpus):
        pipeline, summary = time_pipeline(config, manifest, folder / "float16")
        sizes = {"float16": summary["bytes"] / summary["audio_seconds"]}
        int8 = FeaturesConfig.model_validate({**base, "dtype": "int8"})
        int8_summary = encode(subset, int8, folder / "int8")
        sizes["int8"] = int8_summary["bytes"] / int8_summary["audio_seconds"]
        uar = uar_of(options.emodb, folder, base) if options.emodb else None
        log_mel = uar_of(options.emodb, folder / "corpus", {}) if options.emodb else None
    store = FeatureStore(folder / "float16")
    reads, loads = time_reads(store, folder / "files")
    read_batches, trained_batches = time_training(store, options.batch, device)
    file_bytes = stored_bytes(folder / "files", "*.pt") / subset_s
    return {
        "encoder": options.encoder,
        "clips": options.clips,
        "published_clips": options.published_clips,
        "hours": audio_s / 3600,
        "real_time_factor": pipeline / audio_s,
        "pipeline_s": pipeline,
        "bare_s": bare,
        "published_s_per_s": published / subset_s,
        "pipeline_over_bare": bare / pipeline,
        "pipeline_over_published": (published / subset_s) / (pipeline / audio_s),
        "bytes_per_s_float16": sizes["float16"],
        "bytes_over_published_float16": sizes["float16"] / file_bytes,
        "bytes_over_published_int8": sizes["int8"] / file_bytes,
        "reads_over_loads": reads / loads,
        "input_over_step": read_batches / trained_batches,
        **{f"speech_{dtype}": value for dtype, value in (uar or {}).items()},
        **{f"log_mel_{dtype}": value for dtype, value in (log_mel or {}).items()},
    }


def grow(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """The same encoder on 1, 3 and 10 times the clips, each in a new process."""
    sizes = []
    for times in (1, 3, 10):
        command = [sys.executable, __file__, "--one-size", str(options.grow * times)]
        command += ["--cpus", str(options.cpus), "--folder", str(folder)]
        # Near the shard size of the smallest corpus, so that all sizes have similar shards.
        command += ["--shard-seconds", "240"]
        process = subprocess.run(command, check=True, capture_output=True, text=True)
        sizes.append(json.loads(process.stdout.splitlines()[-1]))
    return sizes


def kill_twice(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kill the stage (SIGKILL) at a third and at two thirds, let it finish, verify the store."""
    clips = options.kill_clips
    out = folder / "killed"
    command = [sys.executable, __file__, "--one-size", str(clips), "--into", str(out)]
    command += ["--cpus", str(options.cpus), "--folder", str(folder)]
    finished_shards: list[int] = []
    redone, failures = 0, 0
    previous: dict[str, int] = {}
    finished = False
    while not finished:
        home = tempfile.mkdtemp(dir="/tmp", prefix="mst-")
        environment = {**os.environ, "RAY_TMPDIR": home}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        killed = False
        while process.poll() is None:
            time.sleep(0.02)
            done = len(list((out / "shards").glob("*.json")))
            kills = len(finished_shards)
            if kills < 2 and done >= (kills + 1) * SHARDS_TO_KILL // 3:
                process.kill()
                process.wait()
                killed = True
                time.sleep(10)  # Ray's processes exit after their driver
        shutil.rmtree(home, ignore_errors=True)
        markers = {p.name: p.stat().st_mtime_ns for p in (out / "shards").glob("*.json")}
        redone += sum(markers[name] != when for name, when in previous.items())
        previous = markers
        finished = process.returncode == 0
        if killed or finished:
            finished_shards.append(len(markers))
        else:
            failures += 1  # e.g. Ray did not start on a busy machine
            if failures > 5:
                raise RuntimeError("the stage keeps failing without being killed")
    store = FeatureStore(out)
    store.verify()
    failed = pq.read_table(out / "quarantine.parquet").num_rows
    return {
        "clips": clips,
        "shards_at_kills": finished_shards[:2],
        "shards": finished_shards[-1],
        "redone": redone,
        "encoded": len(store),
        "quarantined": failed,
        "complete": len(store) + failed == clips,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", choices=sorted(SHAPES), default="small")
    parser.add_argument("--clips", type=int, default=1500)
    parser.add_argument("--published-clips", type=int, default=400)
    parser.add_argument("--batch-seconds", type=float, default=20.0)
    parser.add_argument("--shard-seconds", type=float, default=120.0)
    parser.add_argument("--batch", type=int, default=16, help="utterances per training batch")
    parser.add_argument("--cpus", type=int, default=cores())
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--emodb", type=Path)
    parser.add_argument("--grow", type=int, default=1000, help="clips in the smallest corpus")
    parser.add_argument("--only", choices=["compare", "grow", "kill"])
    parser.add_argument("--kill-clips", type=int, default=5000)
    parser.add_argument("--results", type=Path, help="file of the rows")
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_size:
        config = FeaturesConfig.model_validate(
            {"shard_seconds": options.shard_seconds, "encoders": options.cpus}
        )
        manifest = write_corpus(options.folder / "grow", options.one_size)
        print(json.dumps(one_size(config, manifest, options.cpus, options.into)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: list[dict[str, Any]] = []
        if options.only in (None, "compare"):
            found.append({"what": "compare", **compare(options, folder)})
        if options.only in (None, "grow"):
            found += [{"what": "grow", **size} for size in grow(options, folder)]
        if options.only in (None, "kill"):
            found.append({"what": "kill", **kill_twice(options, folder)})
        for figures in found:
            print(json.dumps(add_row("features", figures, file=options.results)))


if __name__ == "__main__":
    main()
