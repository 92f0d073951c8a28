"""Clips for exported models, and their answers by `Predictor`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from helpers.predictor_case import speech_like

RATE = 16_000


def waves(count: int, longest: float = 4.0, seed: int = 0) -> list[np.ndarray]:
    """Samples [n] at 16 kHz of random lengths, from the shortest that makes a state."""
    lengths = np.random.default_rng(seed).integers(400, round(longest * RATE), count)
    return [speech_like(n / RATE + 0.01, seed=row)[:n] for row, n in enumerate([400, *lengths[1:]])]


def write_clip(path: Path, seconds: float = 1.2) -> np.ndarray:
    """A file of 16 bits at 16 kHz; returns its samples [n] as they are read."""
    soundfile.write(path, speech_like(seconds), RATE, subtype="PCM_16")
    samples, _ = soundfile.read(path, dtype="float32")
    return samples


def run_without(modules: Sequence[str], code: str, folder: Path) -> str:
    """What a program prints that finds none of these modules, with a folder as its own."""
    (folder / "program.py").write_text(code)
    blocked = f"import sys; sys.modules.update(dict.fromkeys({list(modules)!r}))\n"
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{blocked}exec(open('program.py').read())"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
