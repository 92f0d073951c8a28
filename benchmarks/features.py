"""How fast encoding and reading are, as ratios measured in one run on the same clips.

    python benchmarks/features.py                        CPU, a wav2vec2 of small size
    python benchmarks/features.py --encoder large --cuda wav2vec2-large's shape on a GPU
    python benchmarks/features.py --emodb ../shared/data/emodb    adds the UAR of int8
    python benchmarks/features.py --only kill            5,000 clips, killed twice on the way

Weights are random: speed does not depend on them. The published procedure encodes one clip
at a time in float32 and saves one `.pt` file for each. The bare forward runs the same batches
on waves that are decoded already and drops the states. Prints a table and one JSON object.
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

from multistill.config import FeaturesConfig
from multistill.encoders.audio import decode
from multistill.encoders.base import SAMPLE_RATE
from multistill.features.collate import collate, plan
from multistill.features.encode import encode
from multistill.features.store import FeatureStore
from multistill.features.worker import Encoder, Piece, batches

SHARDS_TO_KILL = 120
"""Of the 150 or so that 5,000 clips make; the kills come at a third and at two thirds of it."""

SHAPES = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "conv_dim": (64,) * 7},
    "small": {"hidden_size": 384, "num_hidden_layers": 6, "conv_dim": (256,) * 7},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "conv_dim": (512,) * 7},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "conv_dim": (512,) * 7},
}


def save_encoder(shape: str, folder: Path) -> Path:
    """A layer-norm wav2vec2 of this shape with random weights."""
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


def write_corpus(folder: Path, clips: int, files: int = 400) -> Path:
    """A manifest of clips with the lengths of dialogue speech; some share a file of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    seconds = random.gamma(4.0, 0.9, files).clip(0.4, 20.0)
    for number, length in enumerate(seconds):
        noise = random.normal(0, 0.1, round(length * SAMPLE_RATE)).astype(np.float32)
        soundfile.write(folder / f"{number:04d}.wav", noise, SAMPLE_RATE)
    rows = [
        {
            "utterance_id": f"clip-{row:06d}",
            "audio_path": str(folder / f"{row % files:04d}.wav"),
            "text": "오늘은 정말 힘든 하루 였어 그래도 괜찮아",
            "duration_s": float(len_s),
        }
        for row, len_s in enumerate(np.resize(seconds, clips))
    ]
    path = folder / f"manifest-{clips}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@contextmanager
def cluster(cpus: int) -> Iterator[None]:
    import ray

    ray.init(
        address="local",  # never one that happens to run here
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


def load(config: FeaturesConfig, device: str) -> Encoder:
    return Encoder(config, {"speech": None, "text": None}, device)


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
    """Seconds of both models' forward on bucketed batches of decoded waves."""
    encoder = load(config, device)
    clips = waves_and_texts(manifest)
    pieces = [Piece(row, 0, wave) for row, (wave, _) in enumerate(clips)]
    groups = list(batches(pieces, config.batch_seconds, equal=False))
    encoder.speech.encode([piece.samples for piece in groups[0]])
    synchronize(device)
    started = time.perf_counter()
    for group in groups:
        encoder.speech.encode([piece.samples for piece in group])
        encoder.text.encode([clips[piece.row][1] for piece in group])
    synchronize(device)
    return time.perf_counter() - started


def time_published(config: FeaturesConfig, manifest: Path, out: Path, device: str) -> float:
    """Seconds of one clip at a time, float32, one file each for audio and text."""
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
    """Wall seconds of the whole stage on a running Ray, start of the workers included."""
    started = time.perf_counter()
    summary = encode(manifest, config, out)
    return time.perf_counter() - started, summary


def per_second(action: Callable[[], int], at_least: float = 1.0) -> float:
    """Things done a second, over at least so many seconds, after one warm-up."""
    action()
    done = 0
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < at_least:
        done += action()
    return done / spent


def time_reads(store: FeatureStore, files: Path) -> tuple[float, float]:
    """Clips a second read at random: from the store, and from one file per clip."""
    kept = [name for name in store.ids if (files / f"{name}.pt").exists()]
    order = np.random.default_rng(1).permutation(kept)[:200].tolist()

    def from_store() -> int:
        return len([float(store.audio(name)[-1, -1]) for name in order])

    def from_files() -> int:
        return len([float(torch.load(files / f"{name}.pt")[-1, -1]) for name in order])

    return per_second(from_store), per_second(from_files)


def time_training(store: FeatureStore, batch_size: int, device: str) -> tuple[float, float]:
    """Batches a second that the reader makes, and that a paper-size student's step takes."""
    from multistill.models.build import build
    from multistill.models.presets import resolve

    model = build(resolve("paper-student", {}), store.audio_dim, store.text_dim).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    rows = plan(store.audio_frames(store.ids), batch_size, seed=0)
    groups = [[store.ids[row] for row in part] for part in rows if len(part) == batch_size]

    def read() -> int:
        return len([collate(store, names, 512) for names in groups])

    batch = collate(store, groups[len(groups) // 2], 512).to(device)
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
    """Unweighted recall of a linear probe, leaving one speaker out, per stored type."""
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
            "duration_s": soundfile.info(path).duration,
        }
        for path in paths
    ]
    manifest = folder / "emodb.parquet"
    pq.write_table(pa.Table.from_pylist(rows), manifest)
    found = {}
    for dtype in ("float32", "float16", "int8"):
        out = folder / f"emodb-{dtype}"
        encode(manifest, FeaturesConfig.model_validate({**config, "dtype": dtype}), out)
        store = FeatureStore(out)
        states = [store.audio(name).astype(np.float32) for name in store.ids]
        pooled = np.stack([np.concatenate([s.mean(0), s.std(0)]) for s in states])
        label = np.array([name[5] for name in store.ids])
        speaker = np.array([name[:2] for name in store.ids])
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=1000))
        guess = cross_val_predict(probe, pooled, label, groups=speaker, cv=LeaveOneGroupOut())
        found[dtype] = float(recall_score(label, guess, average="macro"))
    return found


def one_size(
    config: FeaturesConfig, manifest: Path, cpus: int, into: Path | None
) -> dict[str, float]:
    """Of a corpus of one size, in a process of its own: seconds and peak memory.

    `ms_per_clip` is of the wall, start of the workers included; `encoder_ms_per_clip` adds up
    the encoders' own time.
    """
    with cluster(cpus), tempfile.TemporaryDirectory() as out:
        seconds, summary = time_pipeline(config, manifest, into or Path(out) / "store")
    return {
        "clips": summary["clips"],
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
    few = write_corpus(folder / "corpus", options.published_clips)
    audio_s = sum(pq.read_table(manifest, columns=["duration_s"])[0].to_pylist())
    few_s = sum(pq.read_table(few, columns=["duration_s"])[0].to_pylist())
    published = time_published(
        FeaturesConfig.model_validate({**base, "speech": {"model": str(model)}}),
        few,
        folder / "files",
        device,
    )
    bare = time_bare(config, manifest, device)
    with cluster(options.cpus):
        pipeline, summary = time_pipeline(config, manifest, folder / "float16")
        sizes = {"float16": summary["bytes"] / summary["audio_seconds"]}
        small = FeaturesConfig.model_validate({**base, "dtype": "int8"})
        summary8 = encode(few, small, folder / "int8")
        sizes["int8"] = summary8["bytes"] / summary8["audio_seconds"]
        uar = uar_of(options.emodb, folder, base) if options.emodb else None
        log_mel = uar_of(options.emodb, folder / "corpus", {}) if options.emodb else None
    store = FeatureStore(folder / "float16")
    reads, loads = time_reads(store, folder / "files")
    fed, consumed = time_training(store, options.batch, device)
    file_bytes = stored_bytes(folder / "files", "*.pt") / few_s
    return {
        "encoder": f"wav2vec2 {options.encoder} (random weights)",
        "audio_seconds": audio_s,
        "real_time_factor": pipeline / audio_s,
        "seconds": {"pipeline": pipeline, "bare": bare, "published_per_s": published / few_s},
        "pipeline / bare forward": bare / pipeline,
        "pipeline / published": (published / few_s) / (pipeline / audio_s),
        "bytes / published, float16": sizes["float16"] / file_bytes,
        "bytes / published, int8": sizes["int8"] / file_bytes,
        "random reads / torch.load": reads / loads,
        "training input / student step": fed / consumed,
        "uar": uar,
        "uar_log_mel": log_mel,
    }


def grow(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """The same encoder on 1, 3 and 10 times the clips, each in a fresh process."""
    found = []
    for times in (1, 3, 10):
        command = [sys.executable, __file__, "--one-size", str(options.grow * times)]
        command += ["--cpus", str(options.cpus), "--folder", str(folder)]
        # Near what the smallest corpus is cut into, so that shards are alike in all sizes.
        command += ["--shard-seconds", "240"]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(answer.stdout.splitlines()[-1]))
    return found


def kill_twice(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kill -9 the stage at a third and at two thirds, run it a last time, verify everything."""
    clips = options.kill_clips
    out = folder / "killed"
    command = [sys.executable, __file__, "--one-size", str(clips), "--into", str(out)]
    command += ["--cpus", str(options.cpus), "--folder", str(folder)]
    kept: list[int] = []
    redone, failures = 0, 0
    seen: dict[str, int] = {}
    finished = False
    while not finished:
        home = tempfile.mkdtemp(dir="/tmp", prefix="mst-")
        environment = {**os.environ, "RAY_TMPDIR": home}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        killed = False
        while process.poll() is None:
            time.sleep(0.02)
            done = len(list((out / "shards").glob("*.json")))
            if len(kept) < 2 and done >= (len(kept) + 1) * SHARDS_TO_KILL // 3:
                process.kill()
                process.wait()
                killed = True
                time.sleep(10)  # Ray's processes end with their driver
        shutil.rmtree(home, ignore_errors=True)
        markers = {p.name: p.stat().st_mtime_ns for p in (out / "shards").glob("*.json")}
        redone += sum(markers[name] != when for name, when in seen.items())
        seen = markers
        finished = process.returncode == 0
        if killed or finished:
            kept.append(len(markers))
        else:
            failures += 1  # e.g. Ray did not start on a busy machine
            if failures > 5:
                raise RuntimeError("the stage fails without being killed")
    store = FeatureStore(out)
    store.verify()
    failed = pq.read_table(out / "quarantine.parquet").num_rows
    return {
        "clips": clips,
        "shards after each attempt": kept,
        "finished shards done again": redone,
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
    parser.add_argument("--batch", type=int, default=16, help="utterances of a training batch")
    parser.add_argument("--cpus", type=int, default=os.cpu_count())
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--emodb", type=Path)
    parser.add_argument("--grow", type=int, default=1000, help="clips of the smallest corpus")
    parser.add_argument("--only", choices=["compare", "grow", "kill"])
    parser.add_argument("--kill-clips", type=int, default=5000)
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
        found: dict[str, Any] = {}
        if options.only in (None, "compare"):
            found["compare"] = compare(options, folder)
            for key, value in found["compare"].items():
                print(f"{key:34} {value:.3f}" if isinstance(value, float) else f"{key:34} {value}")
        if options.only in (None, "grow"):
            found["grow"] = grow(options, folder)
            for row in found["grow"]:
                print("  ".join(f"{key} {value:.2f}" for key, value in row.items()))
            for key in ("ms_per_clip", "encoder_ms_per_clip"):
                cost = [row[key] for row in found["grow"]]
                found[f"{key}, 10x / 1x"] = cost[-1] / cost[0]
        if options.only in (None, "kill"):
            found["kill"] = kill_twice(options, folder)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
