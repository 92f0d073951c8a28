"""Latency of the encoders, where they cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers.evaluation_case import make_manifest

from multistill.inference.latency import EncoderLatency


def test_encoders_that_cannot_be_loaded_are_reported_and_not_timed(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    info = {"settings": {"speech": {"model": "nobody/there"}}}
    latency = EncoderLatency(manifest, info, ["case-12-00"], 1, torch.device("cpu"))
    assert latency.end_to_end_ms("audio", [1.0]) is None
    assert latency.reason is not None and "nobody/there" in latency.reason
