"""Trace a trained model to a `torch.export` program with dynamic batch size and lengths."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from multistill.config import FeaturesConfig
from multistill.errors import UsageError
from multistill.export.graph import HeadGraph, LogMelStates, SamplesGraph, traces_window
from multistill.models.base import Network
from multistill.models.files import load_model, read_model_config
from multistill.models.spec import ModelSpec

Reads = Literal["samples", "states"]
LOG_MEL = "log-mel"
_FIXED_LENGTH = {
    **dict.fromkeys(("va-audio", "va-text", "va-fusion"), "the recurrent layers"),
    **dict.fromkeys(("fe2e", "mesm"), "the chunks"),
}
"""Network -> what torch.export unrolls in it, so that the program would take one length alone."""


@dataclass(frozen=True)
class Traced:
    """A traced model.

    Attributes:
        program: computes what `graph` does.
        graph: the module before it was traced.
        reads: `samples` of recordings, or `states` of encoders; of text always states.
        outputs: names in their order: `distribution`, `logits`, `dimensions`.
        shapes: dynamic dimensions of each input.
        config: of the model folder.
        why_states: why the graph does not read samples; empty if it does.
    """

    program: torch.export.ExportedProgram
    graph: HeadGraph | SamplesGraph
    reads: Reads
    outputs: tuple[str, ...]
    shapes: Mapping[str, Any]
    config: Mapping[str, Any]
    why_states: str

    def example(self, frames: int, rows: int = 2, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs of several lengths, the longest of `frames` frames or tokens."""
        return _example(self.graph, frames, rows, seed)


def trace(folder: Path, *, head_only: bool = False) -> Traced:
    """Trace the model of a folder: all of it where its encoder is log-mel, else the head.

    Args:
        head_only: trace the head in any case.

    Raises:
        UsageError: the model does not become a graph (`why_no_graph`).
        MultistillError: the folder is not a model folder, or is damaged.
    """
    config = read_model_config(folder)
    if why := why_no_graph(config):
        raise UsageError(
            f"the model {folder} does not become a graph: {why}; use `--format folder` or "
            "`--format mlflow`"
        )
    model = load_model(folder)
    assert isinstance(model, Network)
    fitted = config["temperature"]
    head = HeadGraph(model, config, 1.0 if fitted is None else float(fitted))
    why = "the head alone was asked for" if head_only else why_states(model, config)
    graph: HeadGraph | SamplesGraph = head
    if not why:
        features = FeaturesConfig.model_validate(
            {"speech": config["encoders"]["speech"]["settings"], "dtype": config["dtype"]}
        )
        graph = SamplesGraph(LogMelStates(features.speech, features.dtype), head)
    graph.eval()
    inputs, shapes = _example(graph, 40, 3, 0), _shapes(graph)
    with torch.no_grad(), quiet():
        outputs = tuple(graph(**inputs))
        program = torch.export.export(graph, (), inputs, dynamic_shapes=shapes)
    program.example_inputs = None  # which would be saved as a pickle
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return Traced(program, graph, "states" if why else "samples", outputs, shapes, config, why)


def why_no_graph(config: Mapping[str, Any]) -> str:
    """Why no graph can be traced of a model; empty if one can.

    Args:
        config: of the model folder.
    """
    own = next((name for name, each in config["encoders"].items() if "training" in each), None)
    if own is not None:
        return f"its {own} encoder was trained with it, and does not become one"
    network = config["spec"].get("network", ModelSpec.network)
    reason = _FIXED_LENGTH.get(network)
    return "" if reason is None else f"{reason} of the network {network} are traced for one length"


def why_states(model: Network, config: Mapping[str, Any]) -> str:
    """Why a graph of the model reads states and not samples; empty if it reads samples."""
    if not model.spec.reads_audio:
        return "it reads text alone, and text encoders do not become a graph"
    speech = config["encoders"].get("speech", {})
    settings = speech.get("settings")
    if not settings:
        return "its config.json does not say which speech encoder it reads"
    if settings.get("additional") or settings["model"] != LOG_MEL:
        return f"it reads `{speech['name']}`, and of speech encoders only {LOG_MEL} becomes a graph"
    if not traces_window(settings["window_ms"]):
        return f"its log-mel windows of {settings['window_ms']} ms do not become a graph"
    if model.spec.pooled_strides:
        return "through its strided convolutions, recordings of some lengths alone can be traced"
    return ""


def _example(
    graph: HeadGraph | SamplesGraph, frames: int, rows: int, seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = frames - torch.arange(rows) * (frames // (rows + 1))
    inputs: dict[str, Tensor] = {}
    if isinstance(graph, SamplesGraph):
        samples = graph.states.samples + graph.states.hop * (lengths - 1)
        waves = 0.1 * torch.randn(rows, int(samples.max()), generator=generator)
        inputs = {"samples": waves, "lengths": samples}
    for name, dim, _ in _read_states(graph):
        mask = torch.arange(frames) < lengths[:, None]
        states = torch.randn(rows, frames, dim, generator=generator)
        inputs |= {name: states * mask[:, :, None], f"{name}_mask": mask}
    return inputs


def _shapes(graph: HeadGraph | SamplesGraph) -> dict[str, Any]:
    batch = torch.export.Dim("batch")
    shapes: dict[str, Any] = {}
    if isinstance(graph, SamplesGraph):
        shapes = {"samples": {0: batch, 1: torch.export.Dim("samples")}, "lengths": {0: batch}}
    for name, _, length in _read_states(graph):
        both = {0: batch, 1: torch.export.Dim(length)}
        shapes |= {name: both, f"{name}_mask": both}
    return shapes


def _read_states(graph: HeadGraph | SamplesGraph) -> list[tuple[str, int, str]]:
    """Name, width and name of the length of the states that a graph takes."""
    head = graph.head.head if isinstance(graph, SamplesGraph) else graph.head
    states = []
    if head.spec.reads_audio and not isinstance(graph, SamplesGraph):
        states.append(("audio", head.audio_dim, "frames"))
    if head.spec.reads_text:
        states.append(("text", head.text_dim, "tokens"))
    return states


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters say about packages that are not installed and their own code."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
