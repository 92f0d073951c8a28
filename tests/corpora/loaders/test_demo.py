"""The packaged demo corpus: content, unpacking, and that text and voice are informative."""

from __future__ import annotations

import csv
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.lib.stride_tricks import sliding_window_view

from multistill.config import CLASSES, CorpusConfig
from multistill.corpora.loaders import demo, load
from multistill.corpora.records import TextEncoding, Utterance
from multistill.errors import MultistillError

DATA = Path(str(files("multistill.corpora") / "data"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.unpack(tmp_path_factory.mktemp("unpacked"))


@pytest.fixture(scope="module")
def utterances(root: Path) -> list[Utterance]:
    records = list(load(CorpusConfig(kind="demo"), root=root))
    assert TextEncoding("cp949", "detected") in records
    assert all(isinstance(record, Utterance | TextEncoding) for record in records)
    return [record for record in records if isinstance(record, Utterance)]


def test_the_package_is_small_and_marked_as_synthetic(root: Path) -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= 4_000_000
    index = json.loads((DATA / "demo.json").read_text(encoding="utf-8"))
    assert index["synthetic"] is True
    assert "SYNTHETIC" in index["note"]
    assert "SYNTHETIC" in (root / "SYNTHETIC.txt").read_text(encoding="utf-8")


def test_sessions_have_two_speakers_and_all_classes_occur(utterances: list[Utterance]) -> None:
    assert len(utterances) >= 320
    speakers: dict[str, set[str]] = {}
    for utterance in utterances:
        speakers.setdefault(utterance.session, set()).add(utterance.speaker)
    assert len(speakers) >= 8
    assert {len(pair) for pair in speakers.values()} == {2}
    assert len({name for pair in speakers.values() for name in pair}) == 2 * len(speakers)
    assert {utterance.gender for utterance in utterances} == {"F", "M"}
    votes = np.array([utterance.votes for utterance in utterances])
    assert (votes.sum(axis=1) == 10).all()
    top = votes == votes.max(axis=1, keepdims=True)
    tied = top.sum(axis=1) > 1
    assert 0.02 < tied.mean() < 0.12
    shares = np.bincount(votes[~tied].argmax(axis=1), minlength=7) / (~tied).sum()
    assert shares.min() > 0.07
    assert shares.max() < 0.3


def test_it_unpacks_into_the_layout_of_kemdy20(root: Path, utterances: list[Utterance]) -> None:
    with (root / "annotation" / "Sess01_eval.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert {len(row) for row in rows} == {37}
    assert rows[0][3] == "Segment ID"
    assert rows[1][4:7] == ["Emotion", "Valence", "Arousal"]
    names = Counter(row[4] for row in rows[2:])
    assert set(";".join(names).split(";")) <= {*CLASSES, "disqust"} - {"disgust"}
    for utterance in utterances[::50]:
        info = soundfile.info(utterance.audio_path)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        raw = Path(utterance.audio_path).with_suffix(".txt").read_bytes()
        with pytest.raises(UnicodeDecodeError):
            raw.decode("utf-8")
        assert raw.decode("cp949").strip() == utterance.text_raw
    tagged = [u for u in utterances if u.text != u.text_raw]
    assert 10 < len(tagged) < 80


def test_concurrent_and_repeated_unpacking_gives_one_complete_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = json.loads((DATA / "demo.json").read_text(encoding="utf-8"))
    index["sessions"] = index["sessions"][:2]
    original, shortened = demo._packaged, json.dumps(index).encode()
    monkeypatch.setattr(
        demo, "_packaged", lambda name: shortened if name == demo.INDEX else original(name)
    )
    leftover = tmp_path / f".demo-{demo.digest()}.killed"
    leftover.mkdir()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(demo.unpack, [tmp_path, tmp_path])
    assert first == second == tmp_path / f"demo-{demo.digest()}"
    assert {path.name for path in tmp_path.iterdir()} == {first.name, leftover.name}
    before = (first / "annotation" / "Sess01_eval.csv").stat().st_mtime_ns
    assert demo.unpack(tmp_path) == first
    assert (first / "annotation" / "Sess01_eval.csv").stat().st_mtime_ns == before
    assert len(list(first.glob("wav/*/*.wav"))) == len(list(first.glob("wav/*/*.txt"))) == 72


def test_a_damaged_package_is_reported_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = demo._packaged
    monkeypatch.setattr(
        demo, "_packaged", lambda name: original(name)[: None if name.endswith("json") else -1]
    )
    with pytest.raises(MultistillError, match=r"\.ogg is damaged; reinstall multistill"):
        demo.unpack(tmp_path)
    assert list(tmp_path.iterdir()) == []


def bands(path: Path) -> np.ndarray:
    """Mean, standard deviation and mean absolute difference of 24 log band energies."""
    samples, _ = soundfile.read(path, dtype="float32")
    frames = sliding_window_view(samples, 400)[::320] * np.hanning(400)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    edges = np.geomspace(3, 257, 25).astype(int)
    logs = np.log(np.add.reduceat(power, edges[:-1], axis=1) + 1e-6)
    return np.concatenate([logs.mean(0), logs.std(0), np.abs(np.diff(logs, axis=0)).mean(0)])


def test_words_and_voice_are_informative_and_better_together(
    utterances: list[Utterance],
) -> None:
    from scipy.special import log_softmax
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.model_selection import GroupKFold
    from sklearn.preprocessing import StandardScaler

    votes = np.array([utterance.votes for utterance in utterances])
    untied = np.flatnonzero((votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1)
    truth = votes[untied].argmax(axis=1)
    texts = np.array([utterances[i].text for i in untied])
    voices = np.stack([bands(utterances[i].audio_path) for i in untied])
    sessions = [utterances[i].session for i in untied]
    scores = np.zeros((2, len(untied), len(CLASSES)))
    for train, test in GroupKFold(3).split(voices, truth, sessions):
        words = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), min_df=2)
        scaled = StandardScaler().fit(voices[train])
        inputs = [
            (words.fit_transform(texts[train]), words.transform(texts[test]), 5.0),
            (scaled.transform(voices[train]), scaled.transform(voices[test]), 0.02),
        ]
        for kind, (fitted, scored, c) in enumerate(inputs):
            model = LogisticRegression(C=c, max_iter=1000, class_weight="balanced")
            model.fit(fitted, truth[train])
            scores[kind, test] = log_softmax(model.decision_function(scored), axis=1)

    def uar(score: np.ndarray) -> float:
        return float(recall_score(truth, score.argmax(axis=1), average="macro"))

    words_only, voice_only, both = uar(scores[0]), uar(scores[1]), uar(scores.sum(axis=0))
    assert 0.3 < words_only < 0.65
    assert 0.3 < voice_only < 0.65
    assert both > max(words_only, voice_only) + 0.05
