"""Probes by layer: which states they read, and that the layer to quote is chosen on validation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.evaluation_case import TEXT_DIM, EvaluationCase, make_job

from multistill.evaluation.evaluate import EvaluatedFold, evaluate
from multistill.evaluation.layer_probes import LayerView
from multistill.features.store import FeatureStore
from multistill.features.store_writer import Clip, finish_store, read_marker, shard_writer
from multistill.report.layer_probes import by_layer
from multistill.workspace import read_json

WIDTH, LAYERS = 6, [0, 3, 7]


def make_layers(case: EvaluationCase, folder: Path, combine: str = "concat") -> Path:
    """Speech states of three layers, of which the second tells the class and the first a little."""
    table = pq.read_table(case.manifest / "manifest.parquet")
    random = np.random.default_rng(5)
    directions = random.standard_normal((7, WIDTH))
    clips = []
    for name, shares in zip(
        table["utterance_id"].to_pylist(), table["label_soft"].to_pylist(), strict=True
    ):
        told = np.asarray(shares) @ directions
        layers = [scale * told + random.standard_normal(WIDTH) for scale in (0.3, 3.0, 0.0)]
        audio = np.concatenate(layers) + 0.1 * random.standard_normal((5, 3 * WIDTH))
        text = random.standard_normal((2, TEXT_DIM))
        clips.append(Clip(name, audio.astype(np.float32), text.astype(np.float32)))
    with shard_writer(folder, 0, "float32", 3 * WIDTH, TEXT_DIM, {}) as writer:
        writer.append(clips)
    marker = read_marker(folder, 0)
    assert marker is not None
    encoder = {"trained": True, "params": 1, "layer_params": {}}
    finish_store(
        folder,
        [marker],
        {
            "dtype": "float32",
            "audio_dim": 3 * WIDTH,
            "text_dim": TEXT_DIM,
            "speech": {"name": "wav2vec2", "layers": LAYERS, **encoder},
            "text": {"name": "electra", "layers": [12], **encoder},
            "settings": {"speech": {"layers": LAYERS, "combine": combine}},
        },
    )
    return folder


def evaluated(case: EvaluationCase, store: Path, out: Path) -> dict:
    out.mkdir()
    config = make_job(evaluation={"resamples": 100, "latency_clips": 0}).evaluation
    evaluate([EvaluatedFold(case.manifest, [])], store, config, out)
    return read_json(out / "metrics.json")


def test_a_view_reads_one_layer(evaluation_case: EvaluationCase, tmp_path: Path) -> None:
    store = FeatureStore(make_layers(evaluation_case, tmp_path / "store"))
    name = store.ids[0]
    parts = [LayerView(store, "speech", position, 3) for position in range(3)]
    assert [part.audio_dim for part in parts] == [WIDTH] * 3
    joined = np.concatenate([next(part.each("audio", [name])) for part in parts], axis=1)
    np.testing.assert_array_equal(joined, store.audio(name))
    np.testing.assert_array_equal(next(parts[0].each("text", [name])), store.text(name))
    assert name in parts[0] and "nobody" not in parts[0]


def test_the_layer_that_tells_the_class_is_found_and_shown(
    evaluation_case: EvaluationCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = evaluation_case
    metrics = evaluated(case, make_layers(case, tmp_path / "store"), tmp_path / "evaluation")
    speech = metrics["layers"]["speech"]
    assert [each["layer"] for each in speech["layers"]] == LAYERS
    first, second, third = (each["uar"] for each in speech["layers"])
    assert second["low"] > first["value"] > third["value"]
    assert speech["chosen"]["layers"] == [3]
    assert speech["chosen"]["uar"] == second
    assert metrics["layers"]["text"] == {
        "reason": "the feature store keeps one state of the text encoder"
    }
    # The probe of all layers stands among the references, under the name that is given.
    [together] = [each for each in metrics["references"] if each["name"] == speech["together"]]
    assert together["modality"] == "audio"
    changed = {**case.metrics, "layers": metrics["layers"]}
    monkeypatch.setattr(
        "multistill.report.build.read_json",
        lambda path: changed if path.name == "metrics.json" else read_json(path),
    )
    _, page = case.report()
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    section = re.search(r'<section id="layers">.*?</section>', page, re.DOTALL)
    assert section is not None and 'href="#layers"' in page
    words = " ".join(re.sub(r"<[^>]*>", " ", section[0]).split())
    assert "chosen on validation (3)" in words and f"{second['value']:.3f}" in words
    assert "keeps one state of the text encoder" in page


def test_without_several_layers_there_is_a_reason_and_no_picture(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    case = evaluation_case
    mean = evaluated(case, make_layers(case, tmp_path / "store", "mean"), tmp_path / "mean")
    reason = mean["layers"]["speech"]["reason"]
    assert reason.startswith("the feature store keeps the mean of 3 layers")
    layers = case.metrics["layers"]
    assert all(found["reason"] for found in layers.values())
    assert by_layer(layers, case.metrics["references"], case.metrics["baseline"], 0.95) is None
