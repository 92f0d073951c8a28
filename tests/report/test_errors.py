"""The clips that all models miss, those where teacher and student differ, and their recordings."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from helpers.evaluation_case import EvaluationCase, make_job

from multistill.corpora.manifest import with_classes
from multistill.evaluation.evaluate import predictions_schema
from multistill.report.environment import environment, grouped_answers
from multistill.report.errors import MAX_LISTED, describe_errors, listed
from multistill.report.playback import read_clips

CLASSES = ("calm", "glad", "sad")


def write(
    folder: Path,
    truth: list[str | None],
    models: dict[str, list[list[float]]],
    text: str = "안녕",
    without_class: tuple[int, ...] = (),
) -> None:
    """predictions.parquet and a manifest of clips c0, c1, ... with an audio file each."""
    ids = [f"c{number}" for number in range(len(truth))]
    rows = [
        {
            "utterance_id": ids[number],
            "model": name,
            "label": CLASSES[int(np.argmax(shares))],
            "distribution": shares,
            "truth": truth[number],
            "session": "s",
            "speaker": f"p{number % 2}",
        }
        for name, distributions in models.items()
        for number, shares in enumerate(distributions)
    ]
    table = pa.Table.from_pylist(rows, schema=predictions_schema(CLASSES))
    pq.write_table(table, folder / "predictions.parquet")
    manifest = {
        # In another order than the predictions: rows are found by their id.
        "utterance_id": ids[::-1],
        "audio_path": [str(folder / f"{name}.wav") for name in ids[::-1]],
        "text": [text] * len(ids),
        "label_soft": [
            [0.0] * 3 if number in without_class else [0.7, 0.3, 0.0] for number in range(len(ids))
        ][::-1],
    }
    pq.write_table(pa.table(manifest, metadata=with_classes(CLASSES)), folder / "manifest.parquet")


def metrics(student: str | None = "small", **not_trained: str) -> dict[str, Any]:
    models = [("teacher", "teacher"), ("small", "student"), ("small-control", "control")]
    return {
        "models": [
            {"name": name, "role": role, "not_trained": not_trained.get(name)}
            for name, role in models
        ],
        "classes": ["calm", "glad", "sad"],
        "references": [{"name": "linear probe, audio"}],
        "floor": {"student": student},
    }


def sure(label: int, probability: float) -> list[float]:
    rest = (1 - probability) / 2
    return [probability if index == label else rest for index in range(3)]


def test_missed_clips_are_those_that_no_model_tells_surest_first(tmp_path: Path) -> None:
    truth = ["calm", "calm", "glad", "sad", None]
    models = {
        "teacher": [sure(1, 0.5), sure(1, 0.9), sure(1, 0.9), sure(0, 0.6), sure(0, 0.9)],
        "small": [sure(2, 0.5), sure(2, 0.8), sure(0, 0.9), sure(1, 0.8), sure(0, 0.9)],
        "small-control": [sure(1, 0.5), sure(1, 0.7), sure(0, 0.9), sure(2, 0.9), sure(0, 0.9)],
    }
    write(tmp_path, truth, models)
    missed = describe_errors(tmp_path, tmp_path, metrics())["missed"]
    # c2 is told by the teacher, c3 by the control, c4 is a tie.
    assert [clip["id"] for clip in missed["clips"]] == ["c1", "c0"]
    assert missed["total"] == 2
    assert missed["clips"][0]["confidence"] == np.float32(0.8)
    assert missed["clips"][0]["truth"] == "calm" and missed["clips"][0]["text"] == "안녕"
    votes = missed["clips"][0]["votes"]
    assert list(votes) == ["calm", "glad"] and votes["calm"] == np.float32(0.7)
    groups = grouped_answers(missed["clips"][0]["answers"])
    assert [(label, [name for name, _ in voices]) for label, voices in groups] == [
        ("glad", ["teacher", "small-control"]),
        ("sad", ["small"]),
    ]
    # A model that learnt nothing does not save a clip from the list, nor does it need to miss it.
    assert (
        describe_errors(tmp_path, tmp_path, metrics(**{"small-control": "not trained: x"}))[
            "missed"
        ]["total"]
        == 3
    )


def test_differing_clips_are_ordered_by_divergence_and_at_most_twenty(tmp_path: Path) -> None:
    count = MAX_LISTED + 5
    teacher = [sure(0, 0.9)] * count
    small = [sure(1 if number == 7 else 0, 0.34 + 0.02 * number) for number in range(count)]
    write(tmp_path, [None] * count, {"teacher": teacher, "small": small, "small-control": small})
    found = describe_errors(tmp_path, tmp_path, metrics(), transcripts=False)
    differing = found["differing"]
    assert (differing["teacher"], differing["student"]) == ("teacher", "small")
    values = [clip["divergence"] for clip in differing["clips"]]
    assert differing["clips"][0]["id"] in {"c0", "c7"} and len(values) == MAX_LISTED
    assert values == sorted(values, reverse=True) and values[-1] > 0
    assert found["missed"] == {"models": found["missed"]["models"], "total": 0, "clips": []}
    assert {clip["text"] for clip in listed(found)} == {None}
    assert describe_errors(tmp_path, tmp_path, metrics(student=None))["differing"] is None


def test_a_clip_of_dimensions_alone_is_in_no_list(tmp_path: Path) -> None:
    teacher, small = [sure(0, 0.9)] * 3, [sure(1, 0.5), sure(1, 0.9), sure(0, 0.8)]
    models = {"teacher": teacher, "small": small, "small-control": small}
    write(tmp_path, [None, None, "sad"], models, without_class=(1,))
    found = describe_errors(tmp_path, tmp_path, metrics())
    assert [clip["id"] for clip in found["differing"]["clips"]] == ["c0", "c2"]
    assert {clip["id"] for clip in listed(found)} == {"c0", "c2"}


def test_recordings_are_small_and_stay_below_the_limit(tmp_path: Path) -> None:
    write(tmp_path, [None] * 4, {"teacher": [sure(0, 0.5)] * 4})
    wave = np.sin(np.arange(2 * 44_100) / 20).astype(np.float32)
    for name in ("c0", "c1", "c2"):
        soundfile.write(tmp_path / f"{name}.wav", np.stack([wave, 0 * wave], axis=1), 44_100)
    whole = read_clips(tmp_path, ["c2", "c0", "c3"], 8.0)
    assert list(whole.sources) == ["c2", "c0"] and list(whole.failed) == ["c3"]
    kind, _, content = whole.sources["c0"].partition(",")
    assert kind == "data:audio/mpeg;base64" and len(content) < 30_000
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert rate == 16_000 and samples.ndim == 1 and abs(len(samples) / rate - 2) < 0.2
    size = len(whole.sources["c0"]) / 1e6
    limited = read_clips(tmp_path, ["c0", "c1", "c2"], 2.5 * size)
    assert list(limited.sources) == ["c0", "c1"] and limited.over_limit == ["c2"]
    assert list(read_clips(tmp_path, ["c0", "c0"], 1.5 * size).sources) == ["c0"]


def test_page_plays_clips_only_if_the_job_says_so(evaluation_case: EvaluationCase) -> None:
    report, page = evaluation_case.default_report
    clips = listed(report["errors"])
    assert clips and all(clip["text"] for clip in clips)
    assert "<audio" not in page and all(clip["id"] in page for clip in clips)
    job = make_job(report={"audio": True, "transcripts": False})
    silent, page = evaluation_case.report(job)
    names = {clip["id"] for clip in clips}
    assert page.count("<audio") == page.count("data:audio/") == len(names), "each once"
    repeated = re.findall(r'<a class="ci" href="#(missed-\d+)">', page)
    assert len(repeated) == len(clips) - len(names)
    assert all(f'<audio id="{anchor}"' in page for anchor in repeated)
    assert set(re.findall(r'<audio[^>]* src="([^,]*),', page)) == {"data:audio/mpeg;base64"}
    assert {clip["text"] for clip in listed(silent["errors"])} == {None}
    assert ">transcript</th>" not in page


def test_transcripts_are_escaped(tmp_path: Path) -> None:
    write(tmp_path, ["calm"], {"teacher": [sure(1, 0.9)], "small": [sure(1, 0.9)]}, "<b>&")
    found = metrics()
    found["models"] = found["models"][:2]
    parent = (
        "{% macro caption(text) %}{% endmacro %}{% macro scrollable(text) %}<div>{% endmacro %}"
        '{% include "errors.html" %}'
    )
    page = (
        environment()
        .from_string(parent)
        .render(
            report={"errors": describe_errors(tmp_path, tmp_path, found)},
            job=make_job(),
            playback=None,
            test={"decided": 1},
        )
    )
    assert page.count("&lt;b&gt;&amp;") == 2 and "<b>&" not in page
