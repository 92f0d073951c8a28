"""Training speed: against the published procedure, over workers, and against the bare step.

    python benchmarks/training.py published    ratio to the published procedure, on this CPU
    python benchmarks/training.py workers      1 and 2 workers over gloo, one thread each
    python benchmarks/training.py gpu          samples/s, share of peak, ratio to the bare step

Inputs are random states of encoder size (1024-d audio at 50 frames/s, 768-d text) with the clip
lengths of dialogue speech; speed does not depend on their values. The variants that are compared
run alternately, `--rounds` times, and the fastest run of each counts, since other load on the
machine only slows a run down. Each command prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.multiprocessing as mp
from rows import add_row
from torch import Tensor

from multistill.config import CLASSES, TrainConfig
from multistill.corpora.manifest import manifest_schema, write_manifest
from multistill.features.store_writer import Clip, finish_store, read_marker, shard_writer
from multistill.models.build import build
from multistill.models.layers import Stack
from multistill.models.presets import resolve
from multistill.training.data import TrainingData
from multistill.training.distributed import ProcessGroup, torch_process_group
from multistill.training.loop import fit
from multistill.training.objective import Objective
from multistill.training.optimizer import NamedAdamW
from multistill.training.prefetch import MicroBatch, Prefetcher
from multistill.training.step import FlatGradients, training_step
from multistill.training.task import TrainingTask

AUDIO_DIM, TEXT_DIM, FRAMES_PER_S, TOKENS_PER_S = 1024, 768, 50, 3.5
FIXED_FRAMES, FIXED_TOKENS = 512, 128
DENSE_BF16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Peak of dense bf16 matrix products by part of the device name (vendor's data sheets)."""


def make_inputs(folder: Path, clips: int, mean_seconds: float) -> tuple[Path, Path]:
    """A manifest and a store of `clips` training utterances with gamma-distributed lengths."""
    random = np.random.default_rng(0)
    seconds = random.gamma(4.0, mean_seconds / 4.0, clips).clip(0.4, 20.0)
    label = random.integers(0, len(CLASSES), clips)
    ids = [f"clip-{row:06d}" for row in range(clips)]
    shares = np.eye(len(CLASSES), dtype=np.float32)[label]
    unused = dict.fromkeys(("corpus", "session", "dialogue", "speaker", "audio_path"), "-")
    unused |= dict.fromkeys(("text", "text_raw", "audio_digest", "group"), "-")
    unused_numbers = dict.fromkeys(("turn", "num_samples", "sample_rate", "duration_s", "fold"), 0)
    table = [
        {
            **unused,
            **unused_numbers,
            "utterance_id": ids[row],
            "label": CLASSES[label[row]],
            "label_soft": shares[row],
            "split": "train",
        }
        for row in range(clips)
    ]
    store = folder / "features"
    manifest = write_manifest(pa.Table.from_pylist(table, schema=manifest_schema(CLASSES)), folder)
    with shard_writer(store, 0, "float16", AUDIO_DIM, TEXT_DIM, {}) as writer:
        for row, name in enumerate(ids):
            frames, tokens = int(seconds[row] * FRAMES_PER_S), int(seconds[row] * TOKENS_PER_S) + 3
            audio = random.standard_normal((frames, AUDIO_DIM), dtype=np.float32)
            text = random.standard_normal((tokens, TEXT_DIM), dtype=np.float32)
            writer.append([Clip(name, audio, text)])
    marker = read_marker(store, 0)
    assert marker is not None
    finish_store(
        store, [marker], {"dtype": "float16", "audio_dim": AUDIO_DIM, "text_dim": TEXT_DIM}
    )
    return manifest, store


def make_task(inputs: tuple[Path, Path], preset: str, **train: Any) -> TrainingTask:
    spec = resolve(preset, {})
    settings = {"max_frames": FIXED_FRAMES, "learning_rate": 5e-5, **train}
    config = TrainConfig.model_validate(settings)
    paths = map(str, inputs)
    return TrainingTask("benchmark", "student", spec, config, 0, *paths)


@dataclass(frozen=True)
class Speed:
    """Samples per second of wall time, and of processor time, which other load affects less."""

    wall: float
    processor: float


def fastest(speeds: list[Speed]) -> Speed:
    return Speed(max(s.wall for s in speeds), max(s.processor for s in speeds))


def our_speed(
    task: TrainingTask, state: Path, device: str, group: ProcessGroup | None = None
) -> Speed:
    """Speed of `fit` after its first epoch, checkpoints included."""
    rows = len(TrainingData.open(task).train)
    epochs = fit(task, state_dir=state, device=device, group=group or ProcessGroup())
    next(epochs)
    wall, processor = time.perf_counter(), time.process_time()
    count = sum(1 for _ in epochs)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return Speed(rows * count / wall, rows * count / processor)


# -- the published procedure, implemented from its description -------------------------------


def published_pad(states: Tensor, length: int) -> Tensor:
    """Truncate, or pad with a tensor made of a nested Python list of zeros, as published."""
    states = states[:length]
    missing = length - len(states)
    if not missing:
        return states[None]
    zeros = torch.Tensor([[[0] * states.shape[1]] * missing])
    return torch.cat((states[None], zeros), dim=1)


def published_speed(task: TrainingTask, folder: Path, batch_size: int, batches: int) -> Speed:
    """Speed of the published procedure with the same model and the same cached audio.

    One `.pt` per clip that is read again every epoch, 512 frames and 128 tokens for every clip,
    no mask, a step every eighth batch, and the text encoder run for every batch: a base-size
    ELECTRA with random weights, which is as fast as the trained one, in training mode as
    published (but without gradients, in favour of the published procedure).
    """
    from transformers import ElectraConfig, ElectraModel

    data = TrainingData.open(task)
    ids = data.train.ids[: batch_size * batches]
    for name in ids:
        audio = np.array(data.store.audio(name), dtype=np.float32)
        torch.save(torch.from_numpy(audio), folder / f"{name}.pt")
    encoder = ElectraModel(
        ElectraConfig(
            vocab_size=35_000,
            embedding_size=768,
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
        )
    ).train()
    tokens = torch.randint(0, 35_000, (len(ids), FIXED_TOKENS))
    model = build(task.spec, AUDIO_DIM, TEXT_DIM)
    for module in model.modules():
        if isinstance(module, Stack):
            module.first_only = False  # all positions are computed, as published
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    shares = torch.from_numpy(data.train.shares)

    wall, processor = time.perf_counter(), time.process_time()
    for batch in range(batches):
        rows = range(batch * batch_size, (batch + 1) * batch_size)
        audio = torch.cat(
            [
                published_pad(
                    torch.load(folder / f"{ids[row]}.pt", weights_only=True), FIXED_FRAMES
                )
                for row in rows
            ]
        )
        with torch.no_grad():
            text = encoder(tokens[rows.start : rows.stop]).last_hidden_state
        output = model(audio, None, text, None)
        loss = torch.nn.functional.mse_loss(output.logits, shares[rows.start : rows.stop])
        loss.backward()
        if batch % 8 == 0:
            optimizer.step()
            optimizer.zero_grad()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return Speed(len(ids) / wall, len(ids) / processor)


def published(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    inputs = make_inputs(folder, arguments.clips, arguments.seconds)
    task = make_task(
        inputs,
        arguments.preset,
        epochs=2,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
    )
    batches = max(1, arguments.published_clips // arguments.batch_size)
    published_speeds, our_speeds = [], []
    for turn in range(arguments.rounds):
        published_speeds.append(published_speed(task, folder, arguments.batch_size, batches))
        our_speeds.append(our_speed(task, folder / f"state-{turn}", "cpu"))
    reference, ours = fastest(published_speeds), fastest(our_speeds)
    return {
        "published_per_s": reference.wall,
        "ours_per_s": ours.wall,
        "ratio": ours.wall / reference.wall,
        "ratio_by_processor_time": ours.processor / reference.processor,
        "threads": torch.get_num_threads(),
    }


# -- workers ---------------------------------------------------------------------------------


def _rank(rank: int, size: int, task: TrainingTask, folder: str) -> None:
    torch.set_num_threads(1)
    if size > 1:
        address = f"file://{folder}/rendezvous-{size}"
        torch.distributed.init_process_group("gloo", address, rank=rank, world_size=size)
    state = Path(folder) / f"state-{size}"
    speed = our_speed(task, state, "cpu", torch_process_group(None, size, rank))
    if rank == 0:
        (Path(folder) / "speed.json").write_text(json.dumps(speed.wall))
    if size > 1:
        torch.distributed.destroy_process_group()


def workers(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    inputs = make_inputs(folder, arguments.clips, arguments.seconds)
    task = make_task(inputs, arguments.preset, epochs=2, batch_size=arguments.batch_size)
    speeds = {1: 0.0, 2: 0.0}
    for turn in range(arguments.rounds):
        for size in (1, 2):
            run_folder = folder / f"{turn}-{size}"
            run_folder.mkdir()
            mp.spawn(_rank, (size, task, str(run_folder)), nprocs=size)
            speed = json.loads((run_folder / "speed.json").read_text())
            speeds[size] = max(speeds[size], speed)
    return {
        "one_per_s": speeds[1],
        "two_per_s": speeds[2],
        "efficiency": speeds[2] / (2 * speeds[1]),
    }


# -- GPU -------------------------------------------------------------------------------------


def bare_speed(task: TrainingTask, steps: int) -> tuple[float, float]:
    """Samples/s and FLOP/s of the training step alone, on micro-batches already on the GPU."""
    from torch.utils.flop_counter import FlopCounterMode

    from multistill.features.collate import plan_batches

    device = torch.device("cuda")
    data, config = TrainingData.open(task), task.train
    prefetcher = Prefetcher(data.store, device, config.max_frames)
    batches = plan_batches(data.train.lengths, config.batch_size, seed=0, epoch=1)[:steps]
    micro_batches = list(prefetcher.micro_batches(data.train, batches))
    model = build(task.spec, AUDIO_DIM, TEXT_DIM).to(device).train()
    flat = FlatGradients(model.parameters(), device)
    optimizer = NamedAdamW(model.named_parameters(), config.weight_decay)
    objective = Objective(task, data.train, model.pooled_dim)

    def sample_losses(micro_batch: MicroBatch) -> Tensor:
        states = micro_batch.states
        with torch.autocast("cuda", torch.bfloat16):
            output = model(states.audio, states.audio_mask, states.text, states.text_mask)
        losses: Tensor = objective(output, micro_batch, 0.0)
        return losses

    def epoch() -> None:
        for micro_batch in micro_batches:
            training_step(
                [micro_batch],
                sample_losses,
                len(micro_batch.rows),
                flat,
                optimizer,
                learning_rate=1e-5,
                clip_norm=1.0,
                group=ProcessGroup(),
            )
        torch.cuda.synchronize()

    epoch()
    with FlopCounterMode(display=False) as counter:
        epoch()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    rows = sum(len(micro_batch.rows) for micro_batch in micro_batches)
    return rows / median, counter.get_total_flops() / median


def gpu(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    inputs = make_inputs(folder, arguments.clips, arguments.seconds)
    task = make_task(
        inputs, arguments.preset, epochs=6, batch_size=arguments.batch_size, precision="bfloat16"
    )
    name = torch.cuda.get_device_name()
    peak = next((flops for key, flops in DENSE_BF16_FLOPS.items() if key in name), float("nan"))
    bare, flops = bare_speed(task, arguments.clips // arguments.batch_size)
    ours = our_speed(task, folder / "state", "cuda")
    return {
        "ours_per_s": ours.wall,
        "bare_per_s": bare,
        "ratio_to_bare": ours.wall / bare,
        "bare_share_of_peak": flops / peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["published", "workers", "gpu"])
    parser.add_argument("--preset", default="paper-student")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--published-clips", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="mean clip length")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="for `published` and `workers`")
    parser.add_argument("--precision", default="float32", help="of our training in `published`")
    parser.add_argument("--folder", default=None)
    parser.add_argument("--results", type=Path, help="file of the row")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        command = {"published": published, "workers": workers, "gpu": gpu}[arguments.what]
        results = command(arguments, Path(folder))
    settings = {k: v for k, v in vars(arguments).items() if k not in ("folder", "results")}
    figures = {**settings, **results}
    print(json.dumps(add_row("training", figures, file=arguments.results), indent=2))


if __name__ == "__main__":
    main()
