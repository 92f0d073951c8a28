"""The linear probe against scikit-learn, with soft labels, and with two, one or no classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from helpers.encoder_states import AUDIO_DIM, TEXT_DIM, make_store
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from multistill.features.store import FeatureStore
from multistill.models.probe import INVERSE_PENALTIES, fit_probe, pooled_states

LABELS = [row % 3 for row in range(60)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    lengths = [(3 + row % 5, row % 4) for row in range(60)]
    return make_store(tmp_path_factory.mktemp("probe"), lengths, label_axis=LABELS)


def shares(labels: list[int]) -> np.ndarray:
    return np.eye(7, dtype=np.float32)[labels]


def test_probe_equals_scikit_learn_on_hard_labels(store: FeatureStore) -> None:
    train, test = [f"u{i}" for i in range(45)], [f"u{i}" for i in range(45, 60)]
    probe = fit_probe(store, train, shares(LABELS[:45]), modality="audio")
    predicted = probe.predict(store, test)

    def states(ids: list[str]) -> np.ndarray:
        audio = [store.audio(i) for i in ids]
        return np.stack([np.concatenate([a.mean(axis=0), a.std(axis=0)]) for a in audio])

    scaler = StandardScaler().fit(states(train))
    model = LogisticRegression(C=probe.inverse_penalty, max_iter=500).fit(
        scaler.transform(states(train)), LABELS[:45]
    )
    np.testing.assert_allclose(
        predicted[:, :3], model.predict_proba(scaler.transform(states(test))), atol=1e-4
    )
    assert not predicted[:, 3:].any()
    assert (predicted.argmax(axis=1) == LABELS[45:]).mean() > 0.9
    assert probe.params_trainable == 7 * 2 * AUDIO_DIM + 7


@pytest.mark.parametrize(
    ("modality", "width"),
    [("multimodal", TEXT_DIM + AUDIO_DIM), ("text", TEXT_DIM), ("audio", AUDIO_DIM)],
)
def test_probe_reads_its_modality_and_predicts_distributions(
    store: FeatureStore, modality: str, width: int
) -> None:
    probe = fit_probe(store, store.ids, shares([0] * 60) * 0.4 + 0.6 / 7, modality=modality)  # type: ignore[arg-type]
    assert probe.weights.shape == (7, 2 * width)
    predicted = probe.predict(store, store.ids[:4])
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted.sum(axis=1), 1, atol=1e-6)


def test_probe_predicts_the_shares_of_constant_soft_labels(store: FeatureStore) -> None:
    mixed = np.zeros((60, 7), dtype=np.float32)
    mixed[:, 2], mixed[:, 5] = 0.75, 0.25
    predicted = fit_probe(store, store.ids, mixed).predict(store, store.ids)
    np.testing.assert_allclose(predicted[:, 2], 0.75, atol=0.02)
    np.testing.assert_allclose(predicted[:, 5], 0.25, atol=0.02)


def test_the_penalty_is_the_best_on_validation(store: FeatureStore) -> None:
    """It has the highest macro F1 of all candidates, and is the strongest of equals."""
    train, valid = [f"u{i}" for i in range(40)], [f"u{i}" for i in range(40, 60)]
    noisy = [(label + (row % 4 == 0)) % 3 for row, label in enumerate(LABELS)]
    target = shares(noisy[:40])
    fitted = fit_probe(store, train, target, valid_ids=valid, valid_shares=shares(LABELS[40:]))
    scaled = StandardScaler().fit(pooled_states(store, train, "multimodal"))
    scores = {}
    for penalty in INVERSE_PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=500)
        model.fit(scaled.transform(pooled_states(store, train, "multimodal")), noisy[:40])
        predicted = model.predict(scaled.transform(pooled_states(store, valid, "multimodal")))
        scores[penalty] = f1_score(LABELS[40:], predicted, average="macro")
    assert fitted.inverse_penalty == max(scores, key=lambda penalty: scores[penalty])


def test_a_probe_hears_what_only_the_deviation_over_time_shows() -> None:
    rng = np.random.default_rng(1)
    labels = [row % 2 for row in range(80)]

    class Spread:
        audio_dim, text_dim = 2, 1

        def each(self, modality: str, ids: Iterable[str]) -> Iterator[np.ndarray]:
            assert modality == "audio"
            for name in ids:
                states = rng.normal(size=(30, 2)) * (1 + 2 * labels[int(name)])
                yield (states - states.mean(axis=0)).astype(np.float32)

        def __contains__(self, name: str) -> bool:
            return True

    ids = [str(row) for row in range(80)]
    predicted = fit_probe(Spread(), ids[:60], shares(labels[:60]), modality="audio").predict(
        Spread(), ids[60:]
    )
    assert (predicted.argmax(axis=1) == labels[60:]).mean() > 0.9


def test_pooled_states_are_those_of_each_utterance_and_zeros_without(store: FeatureStore) -> None:
    ids = ["u7", "quarantined", "u4", "u0"]  # u4 and u0 have no transcript
    expected = np.zeros((4, 2 * (TEXT_DIM + AUDIO_DIM)), np.float32)
    for row, name in enumerate(ids):
        start = 0
        for read, dim in ((store.text, TEXT_DIM), (store.audio, AUDIO_DIM)):
            if name in store and len(states := read(name)):
                expected[row, start : start + dim] = states.mean(axis=0)
                expected[row, start + dim : start + 2 * dim] = states.std(axis=0)
            start += 2 * dim
    np.testing.assert_array_equal(pooled_states(store, ids, "multimodal"), expected)


def test_two_classes_and_one_class_are_fitted_and_none_is_refused(store: FeatureStore) -> None:
    two = [1 if label else 4 for label in LABELS]
    ids = [f"u{i}" for i in range(60)]
    predicted = fit_probe(store, ids, shares(two)).predict(store, ids)
    assert (predicted.argmax(axis=1) == two).mean() > 0.9
    one = fit_probe(store, ["u0"], shares([6])).predict(store, ["u1", "u2"])
    assert one.tolist() == [[0, 0, 0, 0, 0, 0, 1]] * 2
    with pytest.raises(ValueError, match="0 utterances"):
        fit_probe(store, [], np.zeros((0, 7)))
