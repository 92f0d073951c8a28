"""Runs an nkululeko experiment.

    python run_nkululeko.py FILE.ini

`torchaudio.load`, which nkululeko calls, needs TorchCodec and the libraries of FFmpeg since
torchaudio 2.9. Where they are missing, soundfile reads the recordings instead, which is no slower.
"""

from __future__ import annotations

import importlib.util
import sys

import soundfile
import torch
import torchaudio


def load(path: str, frame_offset: int = 0, num_frames: int = -1, **_: object) -> object:
    samples, rate = soundfile.read(
        path, frames=num_frames, start=frame_offset, dtype="float32", always_2d=True
    )
    return torch.from_numpy(samples.T), rate


def main() -> None:
    if importlib.util.find_spec("torchcodec") is None:
        torchaudio.load = load
    from nkululeko.nkululeko import doit

    doit(sys.argv[1])


if __name__ == "__main__":
    main()
