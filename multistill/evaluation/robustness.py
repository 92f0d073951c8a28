"""How the models' answers change when the test clips are distorted.

Every model answers the test clips again under the conditions of `multistill.audio.conditions`,
with the states that `distorted_clips` has encoded. Under cross-validation each clip is answered
by the models of its fold. A condition changes one input: the other one, previous turns of the
dialogue, and clips that it leaves as they are, are those of the feature store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multistill.audio.conditions import CONDITIONS, Kind
from multistill.damaged import read_table
from multistill.evaluation.comparisons import Scores, difference
from multistill.evaluation.distorted_clips import CLIPS, LISTED, STORE
from multistill.evaluation.scoring import Scorer
from multistill.features.distorted import key_of
from multistill.features.store import FeatureStore
from multistill.metrics.classification import class_support, from_confusion
from multistill.metrics.intervals import sampling_variance, t_interval
from multistill.typing import AnyArray, BoolArray, FloatArray, IntArray
from multistill.workspace import read_json

METRIC = "uar"
MODALITIES: Mapping[Kind, tuple[str, ...]] = {
    "audio": ("audio", "multimodal"),
    "text": ("text", "multimodal"),
}
"""Models that hear, or read, what a kind of condition changes."""


class ConditionStore(FeatureStore):
    """The feature store with the states of one condition in place of those that it changes."""

    def __init__(self, clean: FeatureStore, distorted: FeatureStore, condition: str) -> None:
        # Not the base's, which opens a folder: both stores are open.
        self.clean, self.distorted, self.condition = clean, distorted, condition
        self.folder, self.info, self.dtype = clean.folder, clean.info, clean.dtype
        self.types = clean.types
        self.audio_dim, self.text_dim = clean.audio_dim, clean.text_dim
        self._index, self._ids = clean._index, None
        self.kind = CONDITIONS[condition].kind

    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self.clean

    def audio_frames(self, ids: Iterable[str]) -> IntArray:
        return self._lengths("audio", list(ids))

    def text_tokens(self, ids: Iterable[str]) -> IntArray:
        return self._lengths("text", list(ids))

    def raw(self, modality: str, utterance_id: str) -> tuple[AnyArray, FloatArray | None]:
        if (key := self._key(modality, utterance_id)) is not None:
            return self.distorted.raw(modality, key)
        return self.clean.raw(modality, utterance_id)

    def _key(self, modality: str, utterance_id: str) -> str | None:
        """Id among the distorted clips; None where the states are those of the feature store."""
        key = key_of(self.condition, utterance_id)
        return key if modality == self.kind and key in self.distorted else None

    def _lengths(self, modality: str, ids: Sequence[str]) -> IntArray:
        def lengths(store: FeatureStore, names: Sequence[str]) -> IntArray:
            read = store.audio_frames if modality == "audio" else store.text_tokens
            return read(names)

        found = lengths(self.clean, ids)
        keys = [self._key(modality, name) for name in ids]
        rows = [row for row, key in enumerate(keys) if key is not None]
        found[rows] = lengths(self.distorted, [key for key in keys if key is not None])
        return found


class Robustness:
    """Collects the answers of the models under every condition.

    Args:
        folder: result of `distorted_clips.encode_distorted`.
        clean: the feature store.
        ids: test clips [N] in the order of the scorer.
    """

    def __init__(self, folder: Path, clean: FeatureStore, ids: Sequence[str]) -> None:
        self.clean = clean
        self.distorted = FeatureStore(folder / STORE)
        self.listed: list[dict[str, Any]] = read_json(folder / LISTED)["conditions"]
        rows = read_table(folder / CLIPS, columns=["condition", "clip"]).to_pydict()
        changed: dict[str, set[str]] = {each["name"]: set() for each in self.listed}
        for condition, clip in zip(rows["condition"], rows["clip"], strict=True):
            changed[condition].add(clip)
        self.changed = {
            name: np.array([clip in clips for clip in ids], dtype=bool)
            for name, clips in changed.items()
        }
        self.failed = {
            name: mask & np.array([key_of(name, clip) not in self.distorted for clip in ids])
            for name, mask in self.changed.items()
        }
        self.answers: dict[str, dict[str, IntArray]] = {}

    def conditions_of(self, modality: str) -> list[str]:
        """The conditions that change what a model of this modality hears or reads."""
        return [
            each["name"]
            for each in self.listed
            if each["reason"] is None and modality in MODALITIES[CONDITIONS[each["name"]].kind]
        ]

    def store(self, condition: str) -> ConditionStore:
        return ConditionStore(self.clean, self.distorted, condition)

    def add(
        self,
        model: str,
        modality: str,
        clean: IntArray,
        parts: Sequence[tuple[Sequence[str], Any]],
    ) -> None:
        """Let a model answer the changed clips.

        Args:
            clean: its answers [N] to the clips as they are.
            parts: per fold the ids of its test clips, and the fold's model
                (`candidates.LoadedModel`).
        """
        self.answers[model] = {}
        for condition in self.conditions_of(modality):
            store, answers, start = self.store(condition), clean.copy(), 0
            wanted = self.changed[condition] & ~self.failed[condition]
            for ids, loaded in parts:
                rows = np.flatnonzero(wanted[start : start + len(ids)])
                if len(rows):
                    chosen = [ids[row] for row in rows.tolist()]
                    answers[start + rows] = loaded.probabilities(chosen, store).argmax(axis=1)
                start += len(ids)
            self.answers[model][condition] = answers

    def describe(self, models: Sequence[Mapping[str, Any]], scorer: Scorer) -> dict[str, Any]:
        """The entry `robustness` of metrics.json.

        Args:
            models: entries of metrics.json.

        Returns:
            `metric`; `conditions`: name, title, kind, `clips` changed, `failed` (could not be
            encoded, left out of both sides), `reason` why there is none; `models`: name, role,
            modality and per condition the value of the metric, its `change` to that of the clips
            as they are with the paired interval, and `unchanged`, the share of changed clips
            that get the same answer, with its interval.
        """
        conditions = [
            {
                **each,
                "title": CONDITIONS[each["name"]].title,
                "kind": CONDITIONS[each["name"]].kind,
                "failed": int(self.failed[each["name"]].sum()),
            }
            for each in self.listed
        ]
        described = []
        for model in models:
            if model["name"] not in self.answers:
                continue
            clean = scorer.scores[model["name"]].predicted
            found = {
                condition: _change(
                    scorer,
                    clean,
                    answers,
                    self.changed[condition],
                    ~self.failed[condition],
                )
                for condition, answers in self.answers[model["name"]].items()
            }
            keys = ("name", "role", "modality")
            described.append({**{key: model[key] for key in keys}, "conditions": found})
        return {"metric": METRIC, "conditions": conditions, "models": described}


def _change(
    scorer: Scorer, clean: IntArray, answers: IntArray, changed: BoolArray, usable: BoolArray
) -> dict[str, Any]:
    """Change of the metric over the usable clips, and share of the changed ones answered alike."""
    before, after = (_scores(scorer, predicted, usable) for predicted in (clean, answers))
    groups = len(np.unique(scorer.clusters.index[usable]))
    counted = changed & usable
    same = np.stack([counted & (clean == answers), counted], axis=1).astype(float)
    total, draws = same.sum(axis=0), scorer.resampling.sums(same)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = draws[:, 0] / draws[:, 1]
        share = total[0] / total[1]
    within = len(np.unique(scorer.clusters.index[counted]))
    return {
        "value": float(after.values[METRIC]) if np.isfinite(after.values[METRIC]) else None,
        "change": difference(METRIC, after, before, groups, scorer.confidence),
        "unchanged": t_interval(
            float(share),
            sampling_variance(shares, within),
            within - 1,
            scorer.confidence,
            (0.0, 1.0),
        ),
    }


def _scores(scorer: Scorer, predicted: IntArray, usable: BoolArray) -> Scores:
    truth, classes = scorer.clips.truth, scorer.statistics.classes
    rows = np.zeros((len(truth), scorer.statistics.cells))
    counted = np.flatnonzero((truth >= 0) & usable)
    rows[counted, truth[counted] * classes + predicted[counted]] = 1.0
    support = class_support(truth[usable], scorer.clusters.index[usable], classes)
    values = from_confusion(scorer.statistics.confusion(rows.sum(axis=0)))
    resampled = scorer.statistics.confusion(scorer.resampling.sums(rows))
    draws = support.without_rare(from_confusion(resampled, support.present))
    return Scores(values, draws, predicted)
