"""The prepare stage: nothing lost, nothing invented, the same again from the same seed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from multistill.config import CLASSES, CorpusConfig, SplitConfig
from multistill.corpora import build as gathering
from multistill.corpora import parallel
from multistill.corpora.audio import read_header
from multistill.corpora.build import build_manifest
from multistill.corpora.manifest import MANIFEST_SCHEMA, REJECTED_SCHEMA, read_manifest
from multistill.corpora.prepare import listing, prepare
from multistill.corpora.records import Note, Record, Rejected, Rows, Utterance
from multistill.errors import MultistillError, UsageError
from multistill.workspace import read_json

HEADER = "utterance_id,audio_path,text,speaker,session,dialogue,turn,split," + ",".join(CLASSES)


class Corpus:
    """A `table` corpus of small noise clips; rows can be added and files spoilt."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: list[str] = []
        root.mkdir(parents=True, exist_ok=True)

    def add(self, session: int, turn: int, votes: Sequence[int], split: str = "") -> str:
        name = f"s{session:02d}t{turn:02d}"
        rng = np.random.default_rng([session, turn])
        soundfile.write(self.root / f"{name}.wav", rng.normal(0, 0.1, 1600 + 16 * turn), 16_000)
        who = f"p{2 * session + turn % 2:03d},ses{session:02d},dlg{session:02d},{turn},{split}"
        self.rows.append(f"{name},{name}.wav,말 {name},{who}," + ",".join(map(str, votes)))
        return name

    def config(self, **more: object) -> CorpusConfig:
        text = "\n".join([HEADER, *self.rows]) + "\n"
        (self.root / "table.csv").write_text(text, encoding="utf-8")
        return CorpusConfig(kind="table", path=str(self.root / "table.csv"), **more)


def votes_for(at: int, sure: int = 7) -> list[int]:
    votes = [0] * 7
    votes[at % 7] += sure
    votes[(at + 1) % 7] += 10 - sure
    return votes


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Eight sessions of six utterances; the last of each session is a tie."""
    made = Corpus(tmp_path / "corpus")
    for session in range(1, 9):
        for turn in range(6):
            made.add(session, turn, votes_for(session + turn, 5 if turn == 5 else 7))
    return made


def run(
    out: Path, *corpora: CorpusConfig, seed: int = 1, workers: int | None = None, **split: object
) -> dict[str, object]:
    out.mkdir(parents=True)
    config = SplitConfig(**split)
    return prepare(corpora, config, seed, out, unpacked=out.parent / "packed", workers=workers)


def rejected(out: Path) -> dict[str, str]:
    table = pq.read_table(out / "rejected.parquet")
    assert table.schema.equals(REJECTED_SCHEMA)
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def test_the_manifest_has_the_columns_of_the_contract(tmp_path: Path, corpus: Corpus) -> None:
    summary = run(tmp_path / "out", corpus.config(name="own"))
    table = read_manifest(tmp_path / "out")
    assert table.schema.equals(MANIFEST_SCHEMA)
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


def test_the_same_seed_gives_the_same_files_and_content_knows_no_split(
    tmp_path: Path, corpus: Corpus
) -> None:
    config = corpus.config()
    first = run(tmp_path / "a", config)
    assert run(tmp_path / "b", config) == first
    for name in ("manifest.parquet", "rejected.parquet", "quality.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    other = run(tmp_path / "c", config, seed=2, test=0.4)
    assert other["splits"] != first["splits"]
    assert other["content"] == first["content"]
    other = Corpus(corpus.root)
    other.rows = [row.replace("말 s01t03", "글") for row in corpus.rows]
    assert run(tmp_path / "d", other.config())["content"] != first["content"]
    soundfile.write(corpus.root / "s01t00.wav", np.zeros(1600), 16_000)
    assert run(tmp_path / "e", corpus.config())["content"] != first["content"]


def test_nothing_is_lost_rows_are_in_the_manifest_or_rejected_with_a_reason(
    tmp_path: Path, corpus: Corpus
) -> None:
    (corpus.root / "s01t00.wav").write_bytes(b"")
    (corpus.root / "s02t01.wav").write_bytes(b"RIFF but no wave")
    (corpus.root / "s03t02.wav").unlink()
    whole = (corpus.root / "s04t03.wav").read_bytes()
    (corpus.root / "s04t03.wav").write_bytes(whole[: len(whole) // 2])
    corpus.rows.append(corpus.rows[7])
    summary = run(tmp_path / "out", corpus.config())
    reasons = rejected(tmp_path / "out")
    kept = {row["utterance_id"]: row for row in read_manifest(tmp_path / "out").to_pylist()}
    assert len(kept) + len(reasons) == len(corpus.rows) == 49
    assert summary["rejected"] == len(reasons) == 5
    assert "is empty (0 bytes)" in reasons["table/s01t00"]
    assert "no audio" in reasons["table/s02t01"]
    assert sum("s03t02.wav" in reason for reason in reasons.values()) == 1
    assert sum("named twice" in reason for reason in reasons.values()) == 1
    assert "is cut short" in reasons["table/s04t03"]


def test_no_utterance_left_is_said_with_the_first_reason(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path / "corpus")
    for turn in range(3):
        (corpus.root / f"{corpus.add(1, turn, votes_for(0))}.wav").write_bytes(b"")
    with pytest.raises(MultistillError, match=r"no utterance is left of 3; .*s01t00.*is empty"):
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


def test_caps_leave_out_training_clips_by_a_seeded_choice_that_growth_does_not_undo(
    tmp_path: Path,
) -> None:
    corpus = Corpus(tmp_path / "corpus")
    for session in range(1, 11):
        for turn in range(8):
            corpus.add(session, turn, votes_for(0 if turn < 6 else turn))
    config = corpus.config()
    run(tmp_path / "free", config)
    run(tmp_path / "capped", config, max_per_class={"neutral": 12})
    free, capped = (read_manifest(tmp_path / n).to_pandas() for n in ("free", "capped"))
    train = free[(free["split"] == "train") & (free["label"] == "neutral")]
    kept = capped[(capped["split"] == "train") & (capped["label"] == "neutral")]
    assert len(kept) == 12 < len(train)
    untouched = ~free["utterance_id"].isin(train["utterance_id"])
    assert set(free[untouched]["utterance_id"]) <= set(capped["utterance_id"])
    reasons = rejected(tmp_path / "capped")
    assert set(reasons) == set(train["utterance_id"]) - set(kept["utterance_id"])
    assert set(reasons.values()) == {"left out by split.max_per_class.neutral: 12"}
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
    for at, row in enumerate(corpus.rows):
        cells = row.split(",")
        cells[7] = {0: "test", 1: "dev"}.get(at % 6, "train")
        corpus.rows[at] = ",".join(cells)
    with pytest.raises(UsageError, match=r"8 sessions on both sides .*split\.allow_leak: true"):
        run(tmp_path / "refused", corpus.config(), by="column", valid=0.0)
    assert list((tmp_path / "refused").iterdir()) == []
    summary = run(tmp_path / "out", corpus.config(), by="column", valid=0.0, allow_leak=True)
    assert summary["splits"] == {"test": 8, "train": 32, "valid": 8}
    assert summary["leaks"]["sessions"] == 8
    assert summary["leaks"]["allowed"] is True


def test_the_demo_corpus_is_prepared_and_called_synthetic(tmp_path: Path) -> None:
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
    assert table["audio_path"].str.startswith(str(tmp_path / "packed")).all()
    raters = read_json(tmp_path / "out" / "quality.json")["raters"]
    assert 0.3 < raters["krippendorff_alpha"] < 0.7
    assert 0.5 < raters["leave_one_rater_out"]["accuracy"] < 0.85
    each = raters["corpora"]["demo"]["each"]
    assert [rater["rater"] for rater in each] == list(range(1, 11))
    asked = sum(rater["answers"] for rater in each)
    assert asked == raters["leave_one_rater_out"]["answers"]
    agreed = sum(rater["accuracy"] * rater["answers"] for rater in each)
    assert agreed / asked == pytest.approx(raters["leave_one_rater_out"]["accuracy"])


def test_two_corpora_keep_their_names_apart(tmp_path: Path) -> None:
    corpora = []
    for name in ("one", "two"):
        made = Corpus(tmp_path / name)
        for session in range(1, 5):
            for turn in range(2):
                made.add(session, turn, votes_for(turn))
        corpora.append(made.config(name=name))
    summary = run(tmp_path / "out", *corpora)
    table = read_manifest(tmp_path / "out").to_pandas()
    assert len(table) == 16
    assert table["utterance_id"].is_unique
    assert table["session"].nunique() == 8
    assert summary["leaks"]["recordings"] > 0  # the same files stand in both
    report = read_json(tmp_path / "out" / "quality.json")
    assert report["counts"]["corpus"] == {"one": 8, "two": 8}
    assert report["duplicates"]["groups"] == 8


def test_an_id_that_two_records_have_is_kept_once(corpus: Corpus) -> None:
    corpus.config()

    def utterance(name: str, file: str) -> Utterance:
        path = str(corpus.root / f"{file}.wav")
        return Utterance(name, path, "s", "d", 0, "p", "말", "말", votes=(1, 0, 0, 0, 0, 0, 0))

    records: list[Record] = [
        utterance("a", "s01t00"),
        Note("x", "recount", "differs"),
        utterance("a", "s01t01"),
        Rejected("y", "no wav"),
        utterance("b", "s01t02"),
    ]
    found = build_manifest([("own", Rows(iter(records), list))], "soft")
    assert found.rows["utterance_id"].to_pylist() == ["own/a", "own/b"]
    assert found.rows["audio_path"][0].as_py().endswith("s01t00.wav")
    assert found.rejections.table().to_pylist() == [
        {"source": "own/y", "reason": "no wav"},
        {"source": "own/a", "reason": "another utterance has this id"},
    ]
    assert found.notes.json() == {"recount": {"count": 1, "examples": ["own/x: differs"]}}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes join in from the first chunk on."""
    monkeypatch.setattr(parallel, "ALONE", -1.0)
    monkeypatch.setattr(gathering, "CHUNK", 4)
    started = parallel._Helpers.__init__

    def waited(self: Any, *arguments: Any) -> None:
        started(self, *arguments)
        self._started.result()

    monkeypatch.setattr(parallel._Helpers, "__init__", waited)


@pytest.mark.usefixtures("at_once")
def test_files_read_by_many_processes_come_in_order(corpus: Corpus) -> None:
    paths = [str(corpus.root / f"s{1 + at // 6:02d}t{at % 6:02d}.wav") for at in range(48)]
    paths[20] = str(corpus.root / "absent.wav")
    alone = list(parallel.map_files(read_header, paths, workers=1))
    assert list(parallel.map_files(read_header, paths, workers=2, chunk=4)) == alone
    assert [at for at, found in enumerate(alone) if isinstance(found, str)] == [20]


@pytest.mark.usefixtures("at_once")
def test_many_processes_prepare_what_one_does(tmp_path: Path, corpus: Corpus) -> None:
    (corpus.root / "s02t01.wav").write_bytes(b"RIFF but no wave")
    corpus.rows += [corpus.rows[7], corpus.rows[3].replace("s01t03", "gone")]
    config = corpus.config()
    made = run(tmp_path / "many", config, workers=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "ALONE", 1e9)
        assert run(tmp_path / "one", config) == made
    assert made["rejected"] == 3
    for name in ("manifest.parquet", "rejected.parquet", "quality.json"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def killed_elsewhere(numbers: Sequence[int], here: int) -> list[int]:
    if numbers and os.getpid() != here:
        os.kill(os.getpid(), signal.SIGKILL)
    return [-number for number in numbers]


@pytest.mark.usefixtures("at_once")
def test_what_a_killed_process_had_in_hand_is_done_here() -> None:
    work = partial(killed_elsewhere, here=os.getpid())
    parts = list(parallel.in_order(work, parallel.chunked(range(40), 4), 3))
    assert [number for part in parts for number in part] == [-at for at in range(40)]


def failing(numbers: Sequence[int]) -> list[float]:
    return [1 / number for number in numbers]


@pytest.mark.usefixtures("at_once")
def test_an_error_in_another_process_is_raised_here() -> None:
    found = parallel.in_order(failing, [[1], [2], [4, 0], [3]], 2)
    assert [next(found), next(found)] == [[1], [0.5]]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_the_listing_follows_the_files_that_loaders_read(tmp_path: Path, corpus: Corpus) -> None:
    config = corpus.config()
    first = listing([config])
    assert listing([config]) == first
    (corpus.root / "notes.md").write_text("mine")
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


def test_a_manifest_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MultistillError, match="there is no manifest at"):
        read_manifest(tmp_path)
    pq.write_table(REJECTED_SCHEMA.empty_table(), tmp_path / "manifest.parquet")
    with pytest.raises(MultistillError, match="lacks utterance_id, corpus"):
        read_manifest(tmp_path)
