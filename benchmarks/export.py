"""Exported light students on EMO-DB: answers, size, UAR in 8 bits, and speed against PyTorch eager.

    multistill run jobs/emodb.yaml --set corpora.0.path=/data/emodb --until prepare
    python benchmarks/export.py FOLDER --manifest MANIFEST [--speakers 1,2] [--preset light-student]

MANIFEST is the folder that the first command prints. For each speaker, trains a student on seven
others (two more choose the epoch; no distorted copies), exports it with `--int8`, and predicts the
speaker's recordings by `Predictor`, by ONNX Runtime, and by ONNX Runtime in 8 bits.

Speed is that of decoded samples to a distribution on one core, on the recordings of the last
speaker: `Predictor` stands for all that it does, `eager` for the computation alone (normalisation,
log-mel, head). All are timed in turn, clip by clip, in processor time, so that other processes
count little. Ratios are medians over clips.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime
import torch
from heads import uar
from light import LIGHT, Bench, Row
from rows import add_row

from multistill import Predictor
from multistill.audio.reading import read_sound
from multistill.config import FeaturesConfig
from multistill.corpora.manifest import classes_of, read_manifest
from multistill.encoders.speech import LogMel
from multistill.export.formats import export
from multistill.export.to_onnx import INT8, MODEL
from multistill.features.decode import normalize
from multistill.inference.predict import predict_logits
from multistill.metrics.calibration import fit_temperature
from multistill.models.files import ModelInfo, save_model
from multistill.typing import FloatArray

ROUNDS = 5


def session(path: Path) -> Callable[[FloatArray], tuple[FloatArray, FloatArray]]:
    """Samples to distribution and logits, on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    run = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"]).run

    def answer(samples: FloatArray) -> tuple[FloatArray, FloatArray]:
        inputs = {"samples": samples[None], "lengths": np.array([len(samples)])}
        distribution, logits = run(["distribution", "logits"], inputs)
        return distribution[0], logits[0]

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--speakers", default="1,2")
    parser.add_argument("--preset", default="light-student")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.folder, arguments.manifest, 0)
    classes = classes_of(read_manifest(arguments.manifest, ["label"]))
    paths = dict(
        zip(
            *read_manifest(arguments.manifest, ["utterance_id", "audio_path"]).to_pydict().values(),
            strict=True,
        )
    )
    found: dict[str, list[Any]] = {"torch": [], "onnx": [], "int8": [], "labels": []}
    difference = 0.0
    for speaker in map(int, arguments.speakers.split(",")):
        manifest, ids, labels = bench.fold(speaker)
        head = bench.train(Row(arguments.preset, train=LIGHT, copies=False), manifest, 1)
        # As in the store of light.py.
        config = FeaturesConfig.model_validate({"speech": {"model": "log-mel", "max_seconds": 8}})
        valid = predict_logits(head, bench.store("log-mel"), ids["valid"], "cpu")
        info = ModelInfo(
            "student",
            classes,
            encoders={
                "speech": {**LogMel().info.to_dict(), "settings": config.identity()["speech"]}
            },
            temperature=fit_temperature(valid, labels["valid"]),
            training={"name": f"without speaker {speaker}"},
        )
        model = arguments.folder / f"model-{arguments.preset}-{speaker}"
        save_model(head, model, info)
        out = arguments.folder / f"onnx-{arguments.preset}-{speaker}"
        if not out.exists():
            print(export(model, out, "onnx", int8=True), flush=True)
        predictor = Predictor.load(model, "cpu")
        exact, rounded = session(out / MODEL), session(out / INT8)
        logits = predict_logits(head, bench.store("log-mel"), ids["test"], "cpu")
        for name, wanted in zip(ids["test"], logits, strict=True):
            samples = read_sound(paths[name]).samples
            prediction = predictor.predict(paths[name])
            found["torch"].append(list(prediction.distribution.values()))
            share, own = exact(samples)
            found["onnx"].append(share)
            found["int8"].append(rounded(samples)[0])
            difference = max(difference, float(np.abs(own - wanted).max()))
        found["labels"].append(labels["test"])
    truth = np.concatenate(found.pop("labels"))
    answers = {name: np.array(shares) for name, shares in found.items()}
    figures: dict[str, Any] = {
        "model": arguments.preset,
        "parameters_m": sum(each.numel() for each in head.parameters()) / 1e6,
        "recordings": len(truth),
        "largest_difference": difference,
        "onnx_mb": (out / MODEL).stat().st_size / 1e6,
        "int8_mb": (out / INT8).stat().st_size / 1e6,
    }
    print(f"{len(truth)} clips; largest difference of a logit, ONNX to torch: {difference:.1e}")
    for name, shares in answers.items():
        same = np.mean(shares.argmax(axis=1) == answers["torch"].argmax(axis=1))
        figures[f"uar_{name}"] = uar(truth, shares)
        figures[f"labels_equal_{name}"] = round(float(same) * len(truth))
        print(f"{name}: UAR {uar(truth, shares):.4f}, labels as torch {same:.4f}")
    for file in sorted([*out.iterdir(), *model.glob("*.safetensors")]):
        print(f"{file.name}: {file.stat().st_size / 1e6:.3f} MB")

    encoder = LogMel()

    @torch.inference_mode()
    def eager(samples: FloatArray) -> None:
        states = torch.from_numpy(encoder.encode([normalize(samples)])[0]).half().float()[None]
        head(states, torch.ones(states.shape[:2], dtype=torch.bool)).logits.softmax(dim=-1)

    doors: dict[str, Callable[[FloatArray], Any]] = {
        "eager": eager, "Predictor": predictor.predict_samples, "onnx": exact, "int8": rounded,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in doors}
    clips = [read_sound(paths[name]).samples for name in ids["test"]]
    for samples in clips:
        best = dict.fromkeys(doors, np.inf)
        for _ in range(ROUNDS):
            for name, door in doors.items():
                start = time.process_time()
                door(samples)
                best[name] = min(best[name], 1000 * (time.process_time() - start))
        for name, milliseconds in best.items():
            times[name].append(milliseconds)
    seconds = np.median([len(samples) for samples in clips]) / 16_000
    print(f"{len(clips)} clips, median {seconds:.1f} s; best of {ROUNDS} rounds, median over clips")
    for name, each in times.items():
        ratio = np.median(np.array(times["eager"]) / np.array(each))
        figures |= {f"{name}_ms": float(np.median(each)), f"{name}_speedup": float(ratio)}
        print(f"{name}: {np.median(each):.2f} ms, {ratio:.2f} times as fast as eager")
    add_row("export", figures | {"clips": len(clips), "clip_s": float(seconds)})


if __name__ == "__main__":
    main()
