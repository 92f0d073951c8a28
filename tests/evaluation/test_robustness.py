"""The robustness pack: which clips are changed, what models read, and what is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.distorted_case import make_distorted, noisy
from helpers.evaluation_case import EvaluationCase, make_job
from helpers.features_case import tone

from multistill.audio import distortions
from multistill.audio.conditions import CONDITIONS, ONE_CHANNEL
from multistill.config import FeaturesConfig
from multistill.errors import MultistillError
from multistill.evaluation.distorted_clips import CLIPS, STORE, encode_distorted, list_clips
from multistill.evaluation.evaluate import EvaluatedFold, evaluate
from multistill.evaluation.inputs import ReferenceInputs
from multistill.evaluation.robustness import Robustness
from multistill.features.actors import EncodeShard
from multistill.features.decode import normalize
from multistill.features.distorted import DISTORTED, decode_distorted, key_of
from multistill.features.shards import plan_shards
from multistill.features.store import FeatureStore
from multistill.tracking.logger import NullLogger
from multistill.workspace import read_json


def listed_rows(folder: Path, condition: str) -> list[dict]:
    rows = pq.read_table(folder / CLIPS).to_pylist()
    return [row for row in rows if row["condition"] == condition]


def test_clips_are_listed_under_the_conditions_that_change_them(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    case = evaluation_case
    listed = {e["name"]: e for e in list_clips([case.manifest], case.store, [1], tmp_path)}
    assert list(listed) == list(CONDITIONS)
    assert listed[ONE_CHANNEL]["reason"] == "all recordings have one channel"
    assert listed["first-3s"] == {
        "name": "first-3s",
        "clips": 0,
        "reason": "it changes no test clip",  # all are of half a second
    }
    clips = case.metrics["test"]["clips"]
    assert listed["white-10"] == {"name": "white-10", "clips": clips, "reason": None}
    assert 0 < listed["text-10"]["clips"] < listed["text-30"]["clips"] < clips
    assert listed["text-missing"]["clips"] == clips
    speaker = dict(
        zip(
            *pq.read_table(case.manifest / "manifest.parquet")
            .select(["utterance_id", "text"])
            .to_pydict()
            .values(),
            strict=True,
        )
    )
    for row in listed_rows(tmp_path, "text-30"):
        assert row["text"] != speaker[row["clip"]]
        assert row["duration_s"] <= 0.5
    assert {row["text"] for row in listed_rows(tmp_path, "babble-10")} == {""}
    known, other = list_clips([case.manifest], case.store, [1, 2], tmp_path), ONE_CHANNEL
    assert next(each for each in known if each["name"] == other)["clips"] == clips


def test_babble_is_made_of_other_speakers_and_the_same_for_both_levels(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    table = pq.read_table(evaluation_case.manifest / "manifest.parquet")
    paths = pa.array([f"{name}.wav" for name in table["utterance_id"].to_pylist()])
    table = table.set_column(table.schema.get_field_index("audio_path"), "audio_path", paths)
    pq.write_table(table, tmp_path / "manifest.parquet")
    speaker = {
        f"{row['utterance_id']}.wav": row["speaker"]
        for row in table.filter(pa.compute.equal(table["split"], "test")).to_pylist()
    }
    list_clips([tmp_path], evaluation_case.store, [1], tmp_path)
    rows = listed_rows(tmp_path, "babble-10")
    for row in rows:
        voices = [speaker[path] for path in row["voices"]]  # of the test part, all of them
        assert len(voices) == len(set(voices)) == 6
        assert speaker[row["audio_path"]] not in voices
    softer = listed_rows(tmp_path, "babble-20")
    assert [row["voices"] for row in rows] == [row["voices"] for row in softer]
    assert len({tuple(row["voices"]) for row in rows}) > len(rows) / 2


def test_a_manifest_without_test_clips_is_told(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    table = pq.read_table(evaluation_case.manifest / "manifest.parquet")
    pq.write_table(
        table.filter(pa.compute.equal(table["split"], "train")), tmp_path / "manifest.parquet"
    )
    with pytest.raises(MultistillError, match="no clip with features, so its robustness"):
        list_clips([tmp_path], evaluation_case.store, [1], tmp_path)


def row_of(path: Path, condition: str, **more: object) -> dict:
    return {
        "utterance_id": key_of(condition, "a"),
        "audio_path": str(path),
        "audio_digest": "",
        "text": "",
        "duration_s": 1.0,
        "clip": "a",
        "condition": condition,
        "voices": [],
        **more,
    }


def test_a_shard_is_decoded_under_its_conditions(tmp_path: Path) -> None:
    left, right = tone(2.0, 300, seed=1), tone(2.0, 900, seed=2)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], axis=1), 16_000, "FLOAT")
    rows = [
        row_of(tmp_path / "two.wav", ONE_CHANNEL),
        row_of(tmp_path / "two.wav", "tilted"),
        row_of(tmp_path / "two.wav", "first-1s"),
        row_of(tmp_path / "two.wav", "text-30", text="other words"),
        row_of(tmp_path / "two.wav", "babble-10", voices=[str(tmp_path / "lost.wav")]),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "clips.parquet")
    (tmp_path / "plan").mkdir()
    plan = plan_shards(tmp_path / "clips.parquet", 100, tmp_path / "plan", DISTORTED.columns)
    assert plan.shards == 1
    found = decode_distorted(plan.path, 0, FeaturesConfig())
    waves = {found.ids[row].split(":")[0]: wave.samples for row, wave in found.waves.items()}
    mixed = (left + right) / 2
    np.testing.assert_allclose(waves[ONE_CHANNEL], normalize(left), atol=1e-5)
    np.testing.assert_allclose(waves["tilted"], normalize(distortions.tilted(mixed)), atol=1e-4)
    np.testing.assert_allclose(waves["first-1s"], normalize(mixed[:16_000]), atol=1e-5)
    assert len(waves["text-30"]) == 8_000
    assert "other words" in found.texts
    [reason] = found.reasons.values()
    assert "cannot be opened" in reason


def encoded_here(case: EvaluationCase, manifest: Path, out: Path) -> dict:
    """Encode three test clips under every condition, shard by shard as an actor does it."""
    table = pq.read_table(case.manifest / "manifest.parquet")
    few = table.filter(pa.compute.equal(table["split"], "test")).slice(0, 3)
    manifest.mkdir()
    pq.write_table(few, manifest / "manifest.parquet")
    config = FeaturesConfig()
    (out / STORE).mkdir(parents=True)
    list_clips([manifest], case.store, [1], out)
    plan = plan_shards(out / CLIPS, config.shard_seconds, out / STORE, DISTORTED.columns)
    (out / STORE / "shards").mkdir()
    weights = {"speech": None, "text": None}
    worker = EncodeShard(
        config.model_dump(), weights, str(plan.path), str(out / STORE), False, 1, DISTORTED
    )
    for shard in range(plan.shards):
        assert worker(pa.table({"shard": [shard]}))["error"].to_pylist() == [None]
    # The second call finds the same plan and all shards done, so it needs no Ray.
    return encode_distorted([manifest], case.store, config, [1], out, NullLogger())


def test_the_encode_pipeline_makes_a_store_of_every_condition(
    tmp_path: Path, evaluation_case: EvaluationCase
) -> None:
    summary = encoded_here(evaluation_case, tmp_path / "manifest", tmp_path / "out")
    assert summary["failed"] == 0
    store = FeatureStore(tmp_path / "out" / STORE)
    assert len(store) == summary["encoded"] == len(pq.read_table(tmp_path / "out" / CLIPS))
    name = store.ids[0].partition(":")[2]
    white, tilted = (store.audio(key_of(each, name)) for each in ("white-10", "tilted"))
    assert white.shape == tilted.shape
    assert not np.allclose(white, tilted)
    assert store.text_tokens([key_of("text-missing", name)]).tolist() == [0]
    assert store.text_tokens([key_of("white-10", name)]).tolist() == [0]


def test_on_ray_the_states_are_those_of_one_process(
    tmp_path: Path, evaluation_case: EvaluationCase, ray_session: None
) -> None:
    encoded_here(evaluation_case, tmp_path / "manifest", tmp_path / "here")
    (tmp_path / "ray").mkdir()
    features = evaluation_case.store
    config = FeaturesConfig.model_validate({"decoders": 1})
    encode_distorted([tmp_path / "manifest"], features, config, [1], tmp_path / "ray", NullLogger())
    here, there = (FeatureStore(tmp_path / each / STORE) for each in ("here", "ray"))
    assert here.ids == there.ids
    for name in here.ids:
        np.testing.assert_array_equal(here.audio(name), there.audio(name))
        np.testing.assert_array_equal(here.text(name), there.text(name))


def scored(case: EvaluationCase, folder: Path, out: Path) -> dict:
    out.mkdir()
    folds = [EvaluatedFold(case.manifest, case.candidates)]
    config = make_job(evaluation={"resamples": 200, "latency_clips": 0}).evaluation
    evaluate(folds, case.store, config, out, seed=5, inputs=ReferenceInputs(distorted=folder))
    return read_json(out / "metrics.json")["robustness"]


def test_clips_that_are_not_changed_are_answered_alike(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    """States equal to the clean ones; every third clip could not be encoded."""

    def same(store: FeatureStore, condition: str, clip: str):
        if condition == "white-20" and int(clip[-2:]) % 3 == 0:
            return None
        # Of a text condition nobody reads the audio, and of an audio condition nobody the text.
        audio, text = np.array(store.audio(clip)), np.array(store.text(clip))
        return (audio, text[:0]) if CONDITIONS[condition].kind == "audio" else (audio[:1] + 9, text)

    folder = make_distorted(evaluation_case, tmp_path / "distorted", same)
    found = scored(evaluation_case, folder, tmp_path / "evaluation")
    failed = {each["name"]: each["failed"] for each in found["conditions"]}
    assert failed["white-20"] == 4 * 8  # sessions, and turns of each
    assert failed["white-10"] == 0
    roles = {model["name"]: model["role"] for model in found["models"]}
    assert "control" not in roles.values()
    assert {"teacher", "student"} == set(roles.values())
    for model in found["models"]:
        for condition, entry in model["conditions"].items():
            assert entry["change"]["value"] == 0, condition
            assert entry["unchanged"]["value"] == 1, condition


def test_a_condition_changes_one_input_of_the_models_that_have_it(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    """The states of a changed clip are those of the next clip, so the answer is that of it."""
    case = evaluation_case
    folder = tmp_path / "distorted"
    ids = pq.read_table(case.manifest / "manifest.parquet", filters=[("split", "=", "test")])[
        "utterance_id"
    ].to_pylist()
    store = FeatureStore(case.store)
    ids = [name for name in ids if name in store]
    following = dict(zip(ids, [*ids[1:], ids[0]], strict=True))

    def of_next(store: FeatureStore, condition: str, clip: str):
        return np.array(store.audio(following[clip])), np.array(store.text(following[clip]))

    found = scored(case, make_distorted(case, folder, of_next), tmp_path / "evaluation")
    by_name = {model["name"]: model["conditions"] for model in found["models"]}
    heard = {name for name, c in CONDITIONS.items() if c.kind == "audio"} - {
        ONE_CHANNEL,
        "first-3s",
    }
    assert set(by_name["audio"]) == heard
    assert set(by_name["text"]) == {"text-missing", "text-10", "text-30"}
    assert set(by_name["multimodal"]) == heard | set(by_name["text"])
    answers = {
        model: dict(zip(ids, labels, strict=True)) for model, labels in predicted(case).items()
    }
    same = np.mean([answers["audio"][name] == answers["audio"][following[name]] for name in ids])
    assert by_name["audio"]["white-10"]["unchanged"]["value"] == pytest.approx(same)
    assert by_name["text"]["text-missing"]["unchanged"]["value"] == pytest.approx(
        np.mean([answers["text"][name] == answers["text"][following[name]] for name in ids])
    )
    robustness = Robustness(folder, store, ids)
    view = robustness.store("white-10")
    np.testing.assert_array_equal(view.audio(ids[0]), store.audio(ids[1]))
    np.testing.assert_array_equal(view.text(ids[0]), store.text(ids[0]))
    assert view.audio_frames(ids).tolist() == [
        *store.audio_frames(ids)[1:],
        *store.audio_frames(ids[:1]),
    ]


def predicted(case: EvaluationCase) -> dict[str, list[str]]:
    table = pq.read_table(case.out / "predictions.parquet")
    rows: dict[str, list[str]] = {}
    for model, label in zip(table["model"].to_pylist(), table["label"].to_pylist(), strict=True):
        rows.setdefault(model, []).append(label)
    return rows


def test_worse_states_cost_recall_with_an_interval(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    folder = make_distorted(evaluation_case, tmp_path / "distorted", noisy)
    found = scored(evaluation_case, folder, tmp_path / "evaluation")
    audio = next(model for model in found["models"] if model["name"] == "audio")["conditions"]
    assert audio["white-10"]["change"]["high"] < 0
    assert audio["white-10"]["change"]["value"] < audio["white-20"]["change"]["value"]
    assert audio["white-10"]["unchanged"]["high"] < audio["white-20"]["unchanged"]["value"]
    clean = next(m for m in evaluation_case.metrics["models"] if m["name"] == "audio")
    entry = audio["white-10"]
    assert entry["value"] - entry["change"]["value"] == pytest.approx(
        clean["metrics"]["uar"]["value"]
    )
