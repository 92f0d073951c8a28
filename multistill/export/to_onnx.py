"""A traced model as ONNX, in float32 and in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multistill import __version__
from multistill.audio import SAMPLE_RATE
from multistill.errors import MultistillError, UsageError
from multistill.export.graph import SamplesGraph
from multistill.export.programs import Traced, quiet
from multistill.workspace import atomic_path, to_json

OPSET = 20
FORMAT = 1
"""Of inputs, outputs and metadata."""
MODEL, INT8 = "model.onnx", "model-int8.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3
"""Between logits of graph and model, when a file is written; tests hold it to a tenth."""
_LENGTHS = (1, 7, 40, 151, 500)


def require_packages() -> None:
    """Refuse where an optional package is missing.

    Raises:
        UsageError: names it.
    """
    for name in PACKAGES:
        if find_spec(name) is None:
            raise UsageError(
                f"--format onnx: the package {name} is not installed; run "
                "`pip install 'multistill[onnx]'`"
            )


def write_onnx(traced: Traced, path: Path, name: str) -> float:
    """Write a graph, and compare it with the model.

    Args:
        name: of the model, for the metadata.

    Returns:
        the largest difference of a logit, or of a dimension, over clips of several lengths.

    Raises:
        MultistillError: the difference is above `TOLERANCE`.
    """
    import onnx

    with quiet():
        exported = torch.onnx.export(
            traced.program,
            dynamo=True,
            opset_version=OPSET,
            output_names=list(traced.outputs),
            dynamic_shapes=dict(traced.shapes),
            verbose=False,
        )
    assert exported is not None
    proto = exported.model_proto
    _strip(proto)
    onnx.helper.set_model_props(proto, metadata(traced, name))
    proto.producer_name, proto.producer_version = "multistill", __version__
    with atomic_path(path) as temporary:
        onnx.save_model(proto, str(temporary))
    difference = largest_difference(traced, path)
    if not difference <= TOLERANCE:
        raise MultistillError(
            f"the graph of {name} answers otherwise than the model: outputs differ by "
            f"{difference:.2g}, and {TOLERANCE:g} is the limit"
        )
    return difference


def write_int8(path: Path, out: Path) -> None:
    """Write a graph once more with the matrices of its head in 8 bits.

    What they are multiplied by is rounded too, with a scale of its own in each call. Convolutions
    stay in float32, and so do the Fourier transform and the mel bands, which are convolutions here.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet(), atomic_path(out) as temporary:
        quantize_dynamic(
            str(path),
            str(temporary),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )


def metadata(traced: Traced, name: str) -> dict[str, str]:
    """What the file says of itself; lists and mappings as JSON."""
    config = traced.config
    found: dict[str, Any] = {
        "format_version": FORMAT,
        "multistill_version": __version__,
        "model": name,
        "sha256": config["sha256"],
        "reads": traced.reads,
        "classes": config["labels"],
        "dimensions": list(config["spec"].get("dimensions", ())),
        "temperature": 1.0 if config["temperature"] is None else config["temperature"],
        "sample_rate": SAMPLE_RATE,
        "encoders": {
            kind: {"name": each.get("name"), "revision": each.get("revision")}
            for kind, each in config["encoders"].items()
        },
    }
    if isinstance(traced.graph, SamplesGraph):
        found["minimum_samples"] = traced.graph.states.samples
    return {
        key: value if isinstance(value, str) else to_json(value) for key, value in found.items()
    }


def largest_difference(traced: Traced, path: Path) -> float:
    """Of any output between the graph in a file and the model, over several lengths."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for seed, frames in enumerate(_LENGTHS):
        inputs = traced.example(frames, rows=1 + seed % 2, seed=seed)
        with torch.inference_mode():
            wanted: Mapping[str, torch.Tensor] = traced.graph(**inputs)
        found = session.run(traced.outputs, {key: value.numpy() for key, value in inputs.items()})
        for output, values in zip(traced.outputs, found, strict=True):
            # Not max(): NaN has to be the worst.
            worst = float(np.maximum(worst, np.abs(values - wanted[output].numpy()).max()))
    return worst


def _strip(proto: Any) -> None:
    """Remove where in which source file each node comes from."""
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, proto.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for each in (proto.graph.initializer, proto.graph.value_info):
        for part in each:
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
