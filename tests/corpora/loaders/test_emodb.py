"""EMO-DB: annotation from file names; boredom is kept only if mapped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from helpers.paths import EMODB

from multistill.config import CorpusConfig, SplitConfig
from multistill.corpora.loaders import load
from multistill.corpora.loaders.emodb import AGES, SPEAKERS, TEXTS
from multistill.corpora.manifest import read_manifest
from multistill.corpora.prepare import prepare
from multistill.corpora.records import Rejected, Utterance
from multistill.errors import UsageError

NAMES = ["03a01Wa", "03a01Lb", "08b09Ec", "16a05Ad", "10b01Fa", "12a07Tb", "15b10Nc"]


def corpus(root: Path, names: list[str]) -> Path:
    (root / "wav").mkdir(parents=True)
    for name in names:
        (root / "wav" / f"{name}.wav").write_bytes(b"RIFF")
    return root


def read(root: Path, labels: dict[str, str] | None = None) -> list[Utterance | Rejected]:
    return list(load(CorpusConfig(kind="emodb", path=str(root), labels=labels or {})))


def test_file_names_give_speaker_text_and_emotion(tmp_path: Path) -> None:
    kept = {r.utterance_id: r for r in read(corpus(tmp_path, NAMES)) if isinstance(r, Utterance)}
    labels = {name: utterance.label for name, utterance in kept.items()}
    assert labels == {
        "03a01Wa": "angry",
        "08b09Ec": "disgust",
        "16a05Ad": "fear",
        "10b01Fa": "happy",
        "12a07Tb": "sad",
        "15b10Nc": "neutral",
    }
    for name, utterance in kept.items():
        assert utterance.speaker == utterance.session == name[:2]
        assert utterance.gender == SPEAKERS[name[:2]]
        assert (utterance.age, utterance.style) == (AGES[name[:2]], "scripted")
        assert utterance.text == TEXTS[name[2:5]]
        assert utterance.votes is None


def test_the_folder_of_wav_files_is_accepted_as_corpus(tmp_path: Path) -> None:
    root = corpus(tmp_path, NAMES)
    outer, inner = read(root), read(root / "wav")
    assert [r for r in inner if isinstance(r, Utterance)] == [
        r for r in outer if isinstance(r, Utterance)
    ]
    assert [r.source for r in inner if isinstance(r, Rejected)] == ["03a01Lb.wav"]


def test_boredom_is_rejected_with_a_hint_how_to_map_it(tmp_path: Path) -> None:
    rejected = [r for r in read(corpus(tmp_path, NAMES)) if isinstance(r, Rejected)]
    assert [r.source for r in rejected] == ["wav/03a01Lb.wav"]
    assert "label `boredom` is none of the 7 classes" in rejected[0].reason
    assert 'add it to `labels.classes`, or set `labels: {"boredom": CLASS}`' in rejected[0].reason


@pytest.mark.parametrize("name", ["boredom", "L", "Langeweile"])
def test_an_emotion_can_be_mapped_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    records = read(corpus(tmp_path, NAMES), {name: "neutral"})
    labels = {r.utterance_id: r.label for r in records if isinstance(r, Utterance)}
    assert labels["03a01Lb"] == "neutral"


def test_the_label_map_takes_precedence(tmp_path: Path) -> None:
    for labels in ({"Freude": "surprise"}, {"happy": "surprise"}, {"F": "surprise"}):
        (record,) = read(corpus(tmp_path / next(iter(labels)), ["10b01Fa"]), labels)
        assert isinstance(record, Utterance)
        assert record.label == "surprise"


def test_unknown_names_and_links_out_of_the_corpus_are_rejected(tmp_path: Path) -> None:
    root = corpus(tmp_path / "emodb", ["03a01Wa", "hello", "03z99Wa", "03a01Qa"])
    outside = tmp_path / "secret.wav"
    outside.write_bytes(b"RIFF")
    (root / "wav" / "08a01Wa.wav").symlink_to(outside)
    reasons = {r.source: r.reason for r in read(root) if isinstance(r, Rejected)}
    assert set(reasons) == {f"wav/{n}.wav" for n in ("08a01Wa", "hello", "03z99Wa", "03a01Qa")}
    assert "leaves the corpus" in reasons["wav/08a01Wa.wav"]


def test_a_wrong_folder_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "emodb" / "wav").mkdir(parents=True)
    (tmp_path / "emodb" / "wav" / "notes.wav").write_bytes(b"")
    with pytest.raises(UsageError, match=r"is not EMO-DB: looked for wav/SSTTTEv\.wav"):
        read(tmp_path / "emodb")
    with pytest.raises(UsageError, match=r"found emodb/; did you mean"):
        read(tmp_path)


@pytest.mark.skipif(not EMODB.is_dir(), reason="no EMO-DB recordings in ../shared/data/emodb")
def test_the_real_recordings_give_the_documented_counts(tmp_path: Path) -> None:
    config = CorpusConfig(kind="emodb", path=str(EMODB))
    summary = prepare([config], SplitConfig(), tmp_path, unpacked=tmp_path)
    rows = read_manifest(tmp_path).to_pandas()
    assert summary["utterances"] == len(rows) == 339
    assert summary["rejected"] == 0
    assert summary["synthetic"] is False
    assert Counter(rows["label"]) == {"angry": 127, "happy": 71, "sad": 62, "neutral": 79}
    names = [path.name[:2] for path in (EMODB / "wav").iterdir()]
    assert Counter(rows["speaker"].str.removeprefix("emodb/")) == Counter(names)
    assert set(names) == SPEAKERS.keys()
    assert rows["duration_s"].between(1.4, 9.0).all()
    assert rows["duration_s"].sum() / 60 == pytest.approx(15.9, abs=0.05)
    assert (rows["sample_rate"] == 16_000).all()
    assert summary["leaks"]["sessions"] == summary["leaks"]["speakers"] == 0
    assert summary["leaks"]["transcripts"] == 10
