"""The prepare stage: every row is kept or rejected, and equal seeds give equal files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.corpora import load, utterance_ids
from helpers.generators import aihub
from helpers.generators.parts import write_wav
from helpers.recording_logger import RecordingLogger

from multistill.config import CLASSES, CorpusConfig, SplitConfig
from multistill.corpora.manifest import REJECTED_SCHEMA, manifest_schema, read_manifest
from multistill.corpora.prepare import is_current, listing, prepare
from multistill.errors import MultistillError, UsageError
from multistill.workspace import read_json

RANDOM = SplitConfig(by="random", allow_leak=True)
HEADER = "utterance_id,audio_path,text,speaker,session,dialogue,turn,split," + ",".join(CLASSES)


class Corpus:
    """A `table` corpus of small noise clips, to which rows can be added."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: list[str] = []
        root.mkdir(parents=True, exist_ok=True)

    def add(self, session: int, turn: int, votes: Sequence[int], split: str = "") -> str:
        name = f"s{session:02d}t{turn:02d}"
        rng = np.random.default_rng([session, turn])
        soundfile.write(self.root / f"{name}.wav", rng.normal(0, 0.1, 1600 + 16 * turn), 16_000)
        fields = f"p{2 * session + turn % 2:03d},ses{session:02d},dlg{session:02d},{turn},{split}"
        self.rows.append(f"{name},{name}.wav,말 {name},{fields}," + ",".join(map(str, votes)))
        return name

    def config(self, **options: object) -> CorpusConfig:
        """Write the table; return its config."""
        text = "\n".join([HEADER, *self.rows]) + "\n"
        (self.root / "table.csv").write_text(text, encoding="utf-8")
        return CorpusConfig(kind="table", path=str(self.root / "table.csv"), **options)


def votes_for(label: int, agreeing: int = 7) -> list[int]:
    """Ten votes: `agreeing` for class index `label` (modulo 7), the others for the next class."""
    votes = [0] * 7
    votes[label % 7] += agreeing
    votes[(label + 1) % 7] += 10 - agreeing
    return votes


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Eight sessions of six utterances; the last one of each session is a tie."""
    corpus = Corpus(tmp_path / "corpus")
    for session in range(1, 9):
        for turn in range(6):
            corpus.add(session, turn, votes_for(session + turn, 5 if turn == 5 else 7))
    return corpus


def run(out: Path, *corpora: CorpusConfig, seed: int = 1, **split: object) -> dict[str, object]:
    out.mkdir(parents=True)
    return prepare(corpora, SplitConfig(seed=seed, **split), out, unpacked=out.parent / "unpacked")


def rejected(out: Path) -> dict[str, str]:
    table = pq.read_table(out / "rejected.parquet")
    assert table.schema.equals(REJECTED_SCHEMA)
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def test_the_manifest_has_the_documented_columns_and_values(tmp_path: Path, corpus: Corpus) -> None:
    summary = run(tmp_path / "out", corpus.config(name="own"))
    table = read_manifest(tmp_path / "out")
    assert table.schema.equals(manifest_schema(CLASSES))
    assert table.equals(read_manifest(tmp_path / "out" / "manifest.parquet"))
    assert summary["utterances"] == len(table) == 48
    assert summary["rejected"] == 0
    assert summary["synthetic"] is False
    rows = table.to_pylist()
    first = rows[0]
    assert first["utterance_id"] == "own/s01t00"
    assert (first["session"], first["speaker"]) == ("own/ses01", "own/p002")
    assert (first["dialogue"], first["turn"]) == ("own/dlg01", 0)
    assert first["text"] == "말 s01t00"
    for row in rows:
        header = soundfile.info(row["audio_path"])
        assert Path(row["audio_path"]).is_absolute()
        assert (row["num_samples"], row["sample_rate"]) == (header.frames, 16_000)
        assert row["duration_s"] == header.frames / 16_000
        assert sum(row["votes"]) == 10
        assert row["label_soft"] == pytest.approx([vote / 10 for vote in row["votes"]])
        tied = row["votes"].count(max(row["votes"])) > 1
        assert tied == (int(row["turn"]) == 5)
        winner = CLASSES[int(np.argmax(row["votes"]))]
        assert row["label"] == (None if tied else winner)
        assert (row["fold"] == -1) == (row["split"] == "test")
    assert len({row["audio_digest"] for row in rows}) == 48
    assert Counter(row["split"] for row in rows) == summary["splits"]


def test_equal_seeds_give_equal_files_and_content_is_independent_of_the_split(
    tmp_path: Path, corpus: Corpus
) -> None:
    config = corpus.config()
    first = run(tmp_path / "a", config)
    assert run(tmp_path / "b", config) == first
    for name in ("manifest.parquet", "rejected.parquet", "quality.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    resplit = run(tmp_path / "c", config, seed=2, test=0.4)
    assert resplit["splits"] != first["splits"]
    assert resplit["content"] == first["content"]
    edited = Corpus(corpus.root)
    edited.rows = [row.replace("말 s01t03", "글") for row in corpus.rows]
    assert run(tmp_path / "d", edited.config())["content"] != first["content"]
    soundfile.write(corpus.root / "s01t00.wav", np.zeros(1600), 16_000)
    assert run(tmp_path / "e", corpus.config())["content"] != first["content"]


def test_every_row_is_in_the_manifest_or_rejected_with_a_reason(
    tmp_path: Path, corpus: Corpus
) -> None:
    (corpus.root / "s01t00.wav").write_bytes(b"")
    (corpus.root / "s02t01.wav").write_bytes(b"RIFF but no wave")
    (corpus.root / "s03t02.wav").unlink()
    data = (corpus.root / "s04t03.wav").read_bytes()
    (corpus.root / "s04t03.wav").write_bytes(data[: len(data) // 2])
    corpus.rows.append(corpus.rows[7])
    summary = run(tmp_path / "out", corpus.config())
    reasons = rejected(tmp_path / "out")
    kept = {row["utterance_id"]: row for row in read_manifest(tmp_path / "out").to_pylist()}
    assert len(kept) + len(reasons) == len(corpus.rows) == 49
    assert summary["rejected"] == len(reasons) == 5
    assert "empty: 0 bytes" in reasons["table/s01t00"]
    assert "not audio" in reasons["table/s02t01"]
    assert sum("s03t02.wav" in reason for reason in reasons.values()) == 1
    assert sum("duplicate id" in reason for reason in reasons.values()) == 1
    assert "truncated" in reasons["table/s04t03"]


def test_a_corpus_without_valid_utterances_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path / "corpus")
    for turn in range(3):
        (corpus.root / f"{corpus.add(1, turn, votes_for(0))}.wav").write_bytes(b"")
    with pytest.raises(MultistillError, match=r"all 3 utterances are rejected; .*s01t00.*empty"):
        run(tmp_path / "out", corpus.config())


@pytest.mark.parametrize(
    ("ties", "rows", "labelled"), [("soft", 48, 40), ("drop", 40, 40), ("first", 48, 48)]
)
def test_tie_policies(tmp_path: Path, corpus: Corpus, ties: str, rows: int, labelled: int) -> None:
    run(tmp_path / "out", corpus.config(), ties=ties)
    table = read_manifest(tmp_path / "out")
    assert len(table) == rows
    assert rows - table["label"].null_count == labelled
    assert len(rejected(tmp_path / "out")) == 48 - rows
    report = read_json(tmp_path / "out" / "quality.json")
    if ties == "soft":
        assert report["raters"]["corpora"]["table"]["ties"] == 8


def test_class_caps_remove_training_clips_and_a_lower_cap_keeps_a_subset(
    tmp_path: Path,
) -> None:
    corpus = Corpus(tmp_path / "corpus")
    for session in range(1, 11):
        for turn in range(8):
            corpus.add(session, turn, votes_for(0 if turn < 6 else turn))
    config = corpus.config()
    run(tmp_path / "uncapped", config)
    run(tmp_path / "capped", config, max_per_class={"neutral": 12})
    uncapped, capped = (read_manifest(tmp_path / n).to_pandas() for n in ("uncapped", "capped"))
    train = uncapped[(uncapped["split"] == "train") & (uncapped["label"] == "neutral")]
    kept = capped[(capped["split"] == "train") & (capped["label"] == "neutral")]
    assert len(kept) == 12 < len(train)
    others = ~uncapped["utterance_id"].isin(train["utterance_id"])
    assert set(uncapped[others]["utterance_id"]) <= set(capped["utterance_id"])
    reasons = rejected(tmp_path / "capped")
    assert set(reasons) == set(train["utterance_id"]) - set(kept["utterance_id"])
    assert set(reasons.values()) == {"excluded by split.max_per_class.neutral: 12"}
    balance = read_json(tmp_path / "capped" / "quality.json")["balance"]
    assert balance["caps"] == {"neutral": 12}
    assert balance["before"]["counts"]["neutral"] == len(train)
    assert balance["after"]["counts"]["neutral"] == 12
    assert balance["after"]["mean_shares"]["neutral"] < balance["before"]["mean_shares"]["neutral"]
    run(tmp_path / "fewer", config, max_per_class={"neutral": 5})
    fewer = read_manifest(tmp_path / "fewer").to_pandas()
    fewer = fewer[(fewer["split"] == "train") & (fewer["label"] == "neutral")]
    assert set(fewer["utterance_id"]) < set(kept["utterance_id"])


def test_a_given_split_that_leaks_is_refused_unless_allowed(tmp_path: Path, corpus: Corpus) -> None:
    for i, row in enumerate(corpus.rows):
        cells = row.split(",")
        cells[7] = {0: "test", 1: "dev"}.get(i % 6, "train")
        corpus.rows[i] = ",".join(cells)
    with pytest.raises(
        UsageError, match=r"8 sessions into several parts .*split\.allow_leak: true"
    ):
        run(tmp_path / "refused", corpus.config(), by="column", valid=0.0)
    assert list((tmp_path / "refused").iterdir()) == []
    summary = run(tmp_path / "out", corpus.config(), by="column", valid=0.0, allow_leak=True)
    assert summary["splits"] == {"test": 8, "train": 32, "valid": 8}
    assert summary["leaks"]["sessions"] == 8
    assert summary["leaks"]["allowed"] is True


def test_the_demo_corpus_is_marked_as_synthetic(tmp_path: Path) -> None:
    summary = run(tmp_path / "out", CorpusConfig(kind="demo"), seed=1024)
    table = read_manifest(tmp_path / "out").to_pandas()
    assert summary["synthetic"] is True
    assert read_json(tmp_path / "out" / "quality.json")["synthetic"] is True
    sessions = table["session"].nunique()
    assert summary["utterances"] == len(table) == 36 * sessions >= 320
    assert summary["rejected"] == 0
    shares = table.groupby("split")["session"].nunique() / sessions
    assert abs(shares["test"] - 0.2) < 0.1
    assert abs(shares["valid"] - 0.15) < 0.1
    assert set(table["label"].dropna()) == set(CLASSES)
    assert table["audio_path"].str.startswith(str(tmp_path / "unpacked")).all()
    raters = read_json(tmp_path / "out" / "quality.json")["raters"]
    assert 0.3 < raters["krippendorff_alpha"] < 0.7
    assert 0.5 < raters["leave_one_rater_out"]["accuracy"] < 0.85
    each = raters["corpora"]["demo"]["each"]
    assert [rater["rater"] for rater in each] == list(range(1, 11))
    answers = sum(rater["answers"] for rater in each)
    assert answers == raters["leave_one_rater_out"]["answers"]
    agreed = sum(rater["accuracy"] * rater["answers"] for rater in each)
    assert agreed / answers == pytest.approx(raters["leave_one_rater_out"]["accuracy"])


def test_names_of_two_corpora_do_not_collide(tmp_path: Path) -> None:
    corpora = []
    for name in ("one", "two"):
        corpus = Corpus(tmp_path / name)
        for session in range(1, 5):
            for turn in range(2):
                corpus.add(session, turn, votes_for(turn))
        corpora.append(corpus.config(name=name))
    summary = run(tmp_path / "out", *corpora)
    table = read_manifest(tmp_path / "out").to_pandas()
    assert len(table) == 16
    assert table["utterance_id"].is_unique
    assert table["session"].nunique() == 8
    assert summary["leaks"]["recordings"] > 0  # both have the same files
    report = read_json(tmp_path / "out" / "quality.json")
    assert report["counts"]["corpus"] == {"one": 8, "two": 8}
    assert report["duplicates"]["groups"] == 8


def test_the_listing_depends_on_the_files_that_loaders_read(tmp_path: Path, corpus: Corpus) -> None:
    config = corpus.config()
    first = listing([config])
    assert listing([config]) == first
    (corpus.root / "notes.md").write_text("text")
    (corpus.root / "workspace").mkdir()
    (corpus.root / "workspace" / "manifest.parquet").write_bytes(b"x")
    assert listing([config]) == first
    os.utime(corpus.root / "s01t00.wav", ns=(1, 1))
    second = listing([config])
    assert second != first
    corpus.add(9, 0, votes_for(0))
    assert listing([config]) not in (first, second)
    assert listing([CorpusConfig(kind="demo")]) == listing([CorpusConfig(kind="demo")])
    with pytest.raises(UsageError, match=r"looked for the folder .*/nowhere, which does not exist"):
        listing([CorpusConfig(kind="kemdy20", path=str(tmp_path / "nowhere"))])


def test_an_edit_that_keeps_size_and_time_makes_the_manifest_out_of_date(
    tmp_path: Path, corpus: Corpus
) -> None:
    config = corpus.config()
    digests = tmp_path / "digests.npy"
    out = tmp_path / "out"
    out.mkdir()
    first = prepare([config], SplitConfig(), out, unpacked=tmp_path, digests=digests)
    before = listing([config])
    assert is_current(out / "manifest.parquet", digests)
    (corpus.root / "s01t00.wav").chmod(0o600)
    assert is_current(out / "manifest.parquet", digests), "the content is what it was"
    edited = corpus.root / "s01t01.wav"
    status = edited.stat()
    data = bytearray(edited.read_bytes())
    data[200] ^= 1
    edited.write_bytes(data)
    os.utime(edited, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert listing([config]) == before
    assert not is_current(out / "manifest.parquet", digests)
    again = prepare([config], SplitConfig(), out, unpacked=tmp_path, digests=digests)
    assert again["content"] != first["content"]
    assert is_current(out / "manifest.parquet", digests)
    edited.unlink()
    assert not is_current(out / "manifest.parquet", digests)


def test_any_byte_of_a_recording_changes_the_key_of_the_features(
    tmp_path: Path, corpus: Corpus
) -> None:
    config = corpus.config()
    seen = {str(run(tmp_path / "before", config)["content"])}
    path = corpus.root / "s03t02.wav"
    original = path.read_bytes()
    for number, offset in enumerate((44, 1_000, len(original) // 3, len(original) - 1)):
        data = bytearray(original)
        data[offset] ^= 1
        path.write_bytes(data)
        seen.add(str(run(tmp_path / f"{number}", config)["content"]))
    path.write_bytes(original)
    assert len(seen) == 5
    assert str(run(tmp_path / "after", config)["content"]) in seen


def test_a_file_name_that_is_not_utf8_is_rejected_and_escaped(tmp_path: Path) -> None:
    truth = aihub.make_scripted(tmp_path / "S")
    folder = next(path for path in sorted(truth.root.iterdir()) if path.is_dir())
    folder.rename(os.fsdecode(os.fsencode(truth.root) + "/감정".encode("cp949")))
    config = CorpusConfig(kind="aihub-scripted", path=str(truth.root))
    assert listing([config]) == listing([config])
    summary = prepare([config], RANDOM, tmp_path, unpacked=tmp_path)
    assert summary["utterances"] == len(read_manifest(tmp_path)) > 0
    rows = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    (first, *_) = [row for row in rows if "is not UTF-8" in row["reason"]]
    assert first["source"].startswith("aihub-scripted/\\xb0\\xa8")
    assert read_json(tmp_path / "quality.json")["rejected"]["by"]["file name"] > 0


def test_the_listing_covers_a_relative_audio_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wav(tmp_path / "a.wav", 1)
    (tmp_path / "tables").mkdir()
    path = tmp_path / "tables/t.csv"
    path.write_text("audio_path,label,speaker\na.wav,sad,kim\n")
    monkeypatch.chdir(tmp_path)
    config = CorpusConfig(kind="table", path="tables/t.csv", audio_root=".")
    assert utterance_ids(load("table", path, audio_root=".")) == ["a"]
    before = listing([config])
    write_wav(tmp_path / "a.wav", 2, 800)
    assert listing([config]) != before


@pytest.mark.parametrize(
    ("train", "valid", "test", "said"),
    [
        ([0], [0, 1], [0, 1], "CLASSES NEVER TRAINED: happy"),
        ([0, 1], [0, 1], [0], "CLASSES NEVER TESTED: happy"),
        ([0, 4], [0], [0, 4], "CLASSES NOT IN VALIDATION: sad"),
        ([0, 1], [0, 1], [0, 1], None),
    ],
)
def test_classes_that_a_part_lacks_are_said_before_anything_is_trained(
    tmp_path: Path, train: list[int], valid: list[int], test: list[int], said: str | None
) -> None:
    corpus = Corpus(tmp_path / "corpus")
    for session, (part, labels) in enumerate(
        [("train", train), ("valid", valid), ("test", test), ("train", train)]
    ):
        for turn, label in enumerate(labels):
            corpus.add(session, turn, votes_for(label), part)
    logger = RecordingLogger()
    (tmp_path / "out").mkdir()
    split = SplitConfig(by="column", folds=2)
    prepare([corpus.config()], split, tmp_path / "out", unpacked=tmp_path, logger=logger)
    found = [message for message in logger.messages if message.startswith("CLASSES")]
    assert [message.startswith(said or "") for message in found] == ([True] if said else [])
