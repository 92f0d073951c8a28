"""`multistill init` writes a job file for what it finds, and following it works."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers.generators import aihub, kemdy19, kemdy20, table
from helpers.generators.parts import write_wav

from multistill.cli import main
from multistill.config import CLASSES, JobConfig
from multistill.corpora.loaders import LOADERS, load
from multistill.corpora.records import Utterance
from multistill.pipeline import jobfile

EMODB = ["03a01Wa", "08b09Ec", "16a05Ad", "10b01Fa", "12a07Tb", "15b10Nc"]


def code_of(arguments: Sequence[str | Path]) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def make_emodb(root: Path) -> None:
    (root / "wav").mkdir(parents=True)
    for number, name in enumerate(EMODB):
        write_wav(root / "wav" / f"{name}.wav", number)


MAKERS: dict[str, Callable[[Path], object]] = {
    "emodb": make_emodb,
    "kemdy19": lambda root: kemdy19.make(root),
    "kemdy20": lambda root: kemdy20.make(root),
    "aihub-dialogue": lambda root: aihub.make_dialogue(root),
    "aihub-scripted": lambda root: aihub.make_scripted(root),
    "aihub-wellness": lambda root: aihub.make_wellness(root),
    "table": lambda root: table.make(root),
}


def utterances(job: JobConfig) -> list[Utterance]:
    records = (record for corpus in job.corpora for record in load(corpus, job.labels))
    return [record for record in records if isinstance(record, Utterance)]


def test_every_kind_of_corpus_is_tried() -> None:
    assert MAKERS.keys() == LOADERS.keys() - {"demo"}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_kind_of_a_corpus_is_found_and_the_file_is_valid(kind: str, tmp_path: Path) -> None:
    MAKERS[kind](tmp_path / "corpus")
    file = tmp_path / "jobs" / "mine.yaml"
    assert code_of(["init", file, "--corpus", tmp_path / "corpus"]) == 0
    assert code_of(["validate", file]) == 0
    job = jobfile.load(file)
    assert [corpus.kind for corpus in job.corpora] == [kind]
    assert utterances(job)
    text = file.read_text(encoding="utf-8")
    assert f"multistill validate {file} --data" in text
    assert (file.parent / "job.schema.json").is_file(), "the file names it"


def test_without_a_corpus_it_is_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(["init"]) == 0
    assert capsys.readouterr().out.strip() == "demo.yaml"
    assert jobfile.load(Path("demo.yaml")).corpora[0].kind == "demo"


def test_an_existing_file_is_not_overwritten_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("mine")
    assert code_of(["init", file]) == 2
    assert "--force" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert code_of(["init", file, "--force"]) == 0
    assert code_of(["validate", file]) == 0


def test_a_folder_of_corpora_becomes_one_job(tmp_path: Path) -> None:
    kemdy19.make(tmp_path / "data" / "KEMDy19_v1_3")
    kemdy20.make(tmp_path / "data" / "KEMDy20_v1_2")
    file = tmp_path / "both.yaml"
    assert code_of(["init", file, "--corpus", tmp_path / "data"]) == 0
    job = jobfile.load(file)
    assert [corpus.title for corpus in job.corpora] == ["KEMDy19_v1_3", "KEMDy20_v1_2"]


def write_table(
    folder: Path, header: Sequence[str], name: str = "t.csv", delimiter: str = ",", audio: str = ""
) -> Path:
    """A table of 24 clips of six speakers, whose column names are given in this order: file,
    transcript, label, speaker. The recordings are in the folder `audio` next to it."""
    (folder / audio).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(24):
        write_wav(folder / audio / f"c{number}.wav", number)
        rows.append([f"c{number}.wav", f"text {number}", CLASSES[number % 4], f"s{number // 4}"])
    with (folder / name).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return folder / name


@pytest.mark.parametrize(
    "header",
    [
        ["audio_path", "text", "label", "speaker"],
        ["path", "transcript", "emotion", "speaker_id"],
        ["File Name", "Sentence", "Emotion", "Speaker-ID"],
        ["파일명", "발화문", "감정", "화자"],
        ["wav", "transcription", "class", "actor"],
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("audio", ["", "wavs"])
def test_the_columns_and_the_folder_of_a_table_are_found(
    header: list[str], delimiter: str, audio: str, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "corpus", header, delimiter=delimiter, audio=audio)
    file = tmp_path / "job.yaml"
    assert code_of(["init", file, "--corpus", path]) == 0
    job = jobfile.load(file)
    kept = utterances(job)
    assert len(kept) == 24
    assert {u.label for u in kept} == set(CLASSES[:4])
    assert {u.speaker for u in kept} == {f"s{n}" for n in range(6)}
    assert kept[3].text == "text 3"
    assert job.protocol.by == "speaker"


def test_the_written_file_reads_its_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path / "corpus", ["file", "text", "emotion", "speaker"])
    file = tmp_path / "job.yaml"
    assert code_of(["init", file, "--corpus", path]) == 0
    assert code_of(["validate", file, "--data"]) == 0
    assert "table: 24 utterances" in capsys.readouterr().out
    assert sorted(child.name for child in tmp_path.iterdir()) == [
        "corpus", "job.schema.json", "job.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize("labels", [["0", "1", "2", "3"], ["no", "on", "01", "calm"]])
def test_labels_that_are_no_default_class_become_the_classes(
    labels: list[str], tmp_path: Path
) -> None:
    path = write_table(tmp_path, ["audio_path", "text", "label", "speaker"])
    lines = path.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    for number, row in enumerate(rows):
        row[2] = labels[number % 4]
    path.write_text("\n".join([lines[0], *map(",".join, rows)]))
    file = tmp_path / "job.yaml"
    assert code_of(["init", file, "--corpus", path]) == 0
    text = file.read_text()
    job = jobfile.load(file)
    assert sorted(job.labels.classes) == sorted(labels)
    assert len(utterances(job)) == 24
    assert text.count("# 6 rows") == 4


def test_more_labels_than_classes_can_be_are_listed(tmp_path: Path) -> None:
    path = write_table(tmp_path, ["audio_path", "text", "label", "speaker"])
    header = path.read_text().splitlines()[0]
    rows = [f"{number}.wav,text,feeling {number % 60},p" for number in range(120)]
    path.write_text("\n".join([header, *rows]))
    file = tmp_path / "job.yaml"
    assert code_of(["init", file, "--corpus", path]) == 0
    assert jobfile.load(file).labels.classes == list(CLASSES)
    assert "#   feeling 0 (2 rows)" in file.read_text()


def test_no_labels_section_where_the_default_classes_fit(tmp_path: Path) -> None:
    path = write_table(tmp_path, ["audio_path", "text", "label", "speaker"])
    file = tmp_path / "job.yaml"
    assert code_of(["init", file, "--corpus", path]) == 0
    assert "labels:" not in file.read_text()


def rewritten(path: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> Path:
    """The table of `write_table` with its rows changed; the columns are those of the first."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [change(row) for row in csv.DictReader(stream)]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


COLUMNS = ["audio_path", "text", "label", "speaker"]


@pytest.mark.parametrize("speakers", [2, 3, 4, 5, 7, 8, 12])
def test_the_job_of_few_speakers_can_run(
    speakers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoken(row: dict[str, str]) -> dict[str, str]:
        number = int(row["audio_path"][1:-4])
        return {**row, "speaker": f"s{number % speakers}", "label": CLASSES[number // speakers % 2]}

    path = rewritten(write_table(tmp_path / "corpus", COLUMNS), spoken)
    file = tmp_path / "job.yaml"
    assert code_of(["init", file, "--corpus", path]) == 0
    to_do = capsys.readouterr().out
    possible = speakers >= 3
    assert code_of(["validate", file, "--data"]) == (0 if possible else 2)
    assert ("the table has 2 speakers, and models need 3" in to_do) is not possible
    job = jobfile.load(file)
    assert job.protocol.kind == ("leave-one-out" if 3 <= speakers < 8 else "holdout")
    assert job.distillation.targets == ("in-sample" if speakers == 3 else "out-of-fold")


@pytest.mark.parametrize("column", ["empty", "absent"])
def test_a_table_without_transcripts_gets_audio_models(column: str, tmp_path: Path) -> None:
    def silent(row: dict[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in row.items() if name != "text"}
        return kept if column == "absent" else {**kept, "text": ""}

    path = rewritten(write_table(tmp_path, COLUMNS), silent)
    file = tmp_path / "job.yaml"
    assert code_of(["init", file, "--corpus", path]) == 0
    job = jobfile.load(file)
    assert job.teacher.model.preset == "small-audio-teacher"
    assert [student.model.preset for student in job.students] == ["small-audio-student"]
    assert code_of(["validate", file]) == 0


@pytest.mark.parametrize("highest", [5, 7])
def test_a_table_of_dimensions_alone(
    highest: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rated(row: dict[str, str]) -> dict[str, str]:
        value = 1 + int(row["audio_path"][1:-4]) % highest
        kept = {name: row[name] for name in ("audio_path", "text", "speaker")}
        return {**kept, "valence": str(value), "arousal": str(1 + value % 3)}

    path = rewritten(write_table(tmp_path / "corpus", COLUMNS), rated)
    file = tmp_path / "job.yaml"
    assert code_of(["init", file, "--corpus", path]) == 0
    to_do = capsys.readouterr().out
    assert "label" not in to_do
    assert ("set `scale`" in to_do) is (highest > 5)
    assert list(jobfile.load(file).tasks.weights()) == ["valence", "arousal"]
    if highest > 5:
        text = file.read_text().replace(
            "  - kind: table", f"  - scale: [1, {highest}]\n    kind: table"
        )
        file.write_text(text)
    assert code_of(["validate", file, "--data"]) == 0


def test_absolute_paths_start_from_the_folder_that_holds_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path / "corpus", COLUMNS, audio="wavs")
    table = tmp_path / "tables" / "t.csv"
    table.parent.mkdir()
    path.rename(table)
    wavs = tmp_path / "corpus" / "wavs"
    rewritten(table, lambda row: {**row, "audio_path": str(wavs / row["audio_path"])})
    file = tmp_path / "job.yaml"
    assert code_of(["init", file, "--corpus", table]) == 0
    job = jobfile.load(file)
    assert job.corpora[0].audio_root == str(wavs)
    assert [u.utterance_id for u in utterances(job)] == [f"c{n}" for n in range(24)]
    file.write_text(file.read_text().replace("audio_root:", "# audio_root:"))
    assert code_of(["validate", file, "--data"]) == 1
    assert "set `audio_root` of the corpus" in capsys.readouterr().err


def test_what_a_table_lacks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("file,words\na.wav,hello\n")
    file = tmp_path / "job.yaml"
    assert code_of(["init", file, "--corpus", path, "--json"]) == 0
    to_do = " ".join(json.loads(capsys.readouterr().out)["to_do"])
    assert "recordings were not found" in to_do
    assert "as `label`" in to_do
    assert "as `speaker`" in to_do
    assert file.read_text().count("# TO DO: ") == 3
    assert code_of(["validate", file]) == 0


def test_two_tables_in_a_folder_are_to_be_chosen_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path, ["audio_path", "text", "label", "speaker"], "a.csv")
    write_table(tmp_path, ["audio_path", "text", "label", "speaker"], "b.csv")
    assert code_of(["init", tmp_path / "job.yaml", "--corpus", tmp_path]) == 2
    assert "a.csv, b.csv" in capsys.readouterr().err
    assert code_of(["init", tmp_path / "job.yaml", "--corpus", tmp_path / "b.csv"]) == 0


def test_a_table_beside_other_tables_is_found(tmp_path: Path) -> None:
    write_table(tmp_path, ["audio_path", "text", "label", "speaker"])
    (tmp_path / "speakers.csv").write_text("speaker,age\ns0,30\n")
    assert code_of(["init", tmp_path / "job.yaml", "--corpus", tmp_path]) == 0
    assert jobfile.load(tmp_path / "job.yaml").corpora[0].path == str(tmp_path / "t.csv")


@pytest.mark.parametrize("made", ["nothing", "empty", "recordings"])
def test_no_corpus_is_told(made: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "corpus"
    if made != "nothing":
        root.mkdir()
    if made == "recordings":
        write_wav(root / "one.wav", 1)
    assert code_of(["init", tmp_path / "job.yaml", "--corpus", root]) == 2
    assert "multistill: " in capsys.readouterr().err
    assert not (tmp_path / "job.yaml").exists()


@pytest.mark.parametrize(
    "folder", ["2024-01-01", "007", "no", "감정 말뭉치", "a: b # c", "it's", "-", "x" * 200]
)
def test_any_folder_name_gives_a_valid_job(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_emodb(tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    assert code_of(["init", "--corpus", folder if folder != "-" else "./-"]) == 0
    (file,) = tmp_path.glob("*.yaml")
    assert jobfile.load(file).corpora[0].path == str(tmp_path / folder)
