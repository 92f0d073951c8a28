"""Three AI Hub corpora of Korean emotional speech (licensed, by application).

The layouts are those that public code reads. None of the three defines sessions of speakers, so
each loader documents what it uses as speaker and session, the groups of a split.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from multistill.config import CorpusConfig
from multistill.corpora.labels import LabelReader
from multistill.corpora.loaders.csv_parquet import Table, open_table
from multistill.corpora.loaders.fields import parse_age, parse_gender
from multistill.corpora.paths import (
    FileResolver,
    list_files,
    lower_ending,
    nfc_names,
    require_inside,
    wrong_folder,
)
from multistill.corpora.records import Note, Record, Rejected, SeenIds, Utterance, duplicate_id
from multistill.corpora.text import CorpusText, tidy
from multistill.errors import UsageError

DIALOGUE_TABLES = ("4차년도", "5차년도", "5차년도_2차")
_PAIRS = tuple((f"{n}번 감정", f"{n}번 감정세기") for n in range(1, 6))
_INTENSITIES = {"0": 0, "1": 1, "2": 2, "0.0": 0, "1.0": 1, "2.0": 2}


def load_dialogue(config: CorpusConfig, root: Path, labels: LabelReader) -> Iterator[Record]:
    """감정 분류를 위한 대화 음성 데이터셋: three yearly tables, five raters with intensities.

    `4차년도.csv`, `5차년도.csv`, `5차년도_2차.csv` in CP949, each next to a folder of the same
    name with `<wav_id>.wav` (one folder further down in one of the archives). The weight of a
    vote is its intensity (0 to 2) plus one, as published.

    Speakers are not identified. People of the same gender and age count as one speaker and one
    session, so that a voice within a year stays in one part of a split.
    """
    on_disk = nfc_names(root)
    names = [name for name in DIALOGUE_TABLES if f"{name}.csv" in on_disk]
    if not names:
        expected = ", ".join(f"{name}.csv" for name in DIALOGUE_TABLES)
        raise wrong_folder("AI Hub's dialogue corpus", expected, root)
    seen = SeenIds()
    paths = [root / on_disk[f"{name}.csv"] for name in names]
    texts = CorpusText(config.title, config.encoding, lambda: paths, korean=True)
    for name in names:
        path = require_inside(root / on_disk[f"{name}.csv"], root)
        table = open_table(path, f"{name}.csv", texts)
        yield from _dialogue_table(root, table, on_disk.get(name, name), seen, labels)
    yield from texts.records()


def _dialogue_table(
    root: Path, table: Table, folder: str, seen: SeenIds, labels: LabelReader
) -> Iterator[Record]:
    columns = {_without_spaces(name): index for index, name in enumerate(table.header)}
    for required in ("wav_id", "발화문", *(name for pair in _PAIRS for name in pair)):
        if _without_spaces(required) not in columns:
            table.require([required])
    find = _finder(root, root / folder)
    for item in table.rows():
        if isinstance(item, Rejected):
            yield item
            continue
        source, cells = item
        row = {key: str(cells[index] or "").strip() for key, index in columns.items()}
        name = row["wav_id"]
        if not name:
            yield Rejected(source, "no value in column `wav_id`")
            continue
        try:
            audio = find(f"{name}.wav")
        except ValueError as error:
            yield Rejected(source, str(error))
            continue
        votes, ratings, notes = _weighted_votes(row, labels)
        if not any(votes):
            yield Rejected(source, f"{name}: no votes")
            continue
        if not seen.add_if_new(name):
            yield Rejected(source, duplicate_id(name))
            continue
        yield from (Note(source, kind, f"{name}: {text}") for kind, text in notes)
        gender = parse_gender(row.get("성별", ""))
        speaker = f"{gender or 'unknown'}-{row.get('나이') or 'unknown'}"
        yield Utterance(
            utterance_id=name,
            audio_path=audio,
            session=speaker,
            dialogue=name,
            turn=0,
            speaker=speaker,
            gender=gender,
            text_raw=row["발화문"],
            text=tidy(row["발화문"]),
            encoding=table.encoding,
            votes=votes,
            ratings=ratings,
            age=parse_age(row.get("나이", "")).value,
        )


def _weighted_votes(
    row: Mapping[str, str], labels: LabelReader
) -> tuple[tuple[int, ...], tuple[str | None, ...], list[tuple[str, str]]]:
    """Weighted votes, one class per rater, and `(kind, text)` notes on invalid votes."""
    votes = [0] * len(labels.classes)
    ratings: list[str | None] = []
    notes: list[tuple[str, str]] = []
    for emotion_column, intensity_column in _PAIRS:
        emotion = row[_without_spaces(emotion_column)]
        intensity = row[_without_spaces(intensity_column)]
        rating = labels[emotion]
        ratings.append(rating)
        if rating is None:
            if emotion:
                notes.append(("unknown vote", f"the vote for {emotion} is not counted"))
            continue
        if intensity not in _INTENSITIES:
            notes.append(("no intensity", f"`{intensity}` is not 0, 1 or 2 and is read as 0"))
        votes[labels.classes.index(rating)] += 1 + _INTENSITIES.get(intensity, 0)
    return tuple(votes), tuple(ratings), notes


def _without_spaces(name: str) -> str:
    """Column names differ in spaces between releases: `4번 감정세기` and `4번감정세기`."""
    return "".join(name.split())


def _finder(root: Path, folder: Path) -> Callable[[str], str]:
    """A function that finds a file in `folder`, or else in one of its subfolders."""
    resolver = FileResolver(root)
    subfolders = [
        child.name
        for child in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if child.is_dir()
    ]

    def find(name: str) -> str:
        first: ValueError | None = None
        for subfolder in ("", *subfolders):
            try:
                return resolver.resolve(f"{folder.name}/{subfolder}/{name}")
            except ValueError as error:
                first = first or error
        assert first is not None
        raise first

    return find


def load_scripted(config: CorpusConfig, root: Path, labels: LabelReader) -> Iterator[Record]:
    """감정분류용 데이터셋: the same scripts read by many speakers, one label per script.

    `스크립트.csv` in CP949 with `number`, `script`, `emotion`; one folder of recordings per
    speaker, whose names end in the script's three digits. The folder is used as speaker and
    session. Every folder has every sentence, so no split can separate the text; the quality
    report counts the sentences in several parts.
    """
    name = nfc_names(root).get("스크립트.csv")
    if name is None:
        raise wrong_folder("AI Hub's scripted corpus", "스크립트.csv", root)
    path = require_inside(root / name, root)
    texts = CorpusText(config.title, config.encoding, lambda: [path], korean=True)
    table = open_table(path, "스크립트.csv", texts)
    yield from texts.records()
    scripts: dict[int, tuple[str, str]] = {}
    columns = {name.casefold(): index for index, name in enumerate(table.header)}
    for required in ("number", "script", "emotion"):
        if required not in columns:
            table.require([required])
    for item in table.rows():
        if isinstance(item, Rejected):
            yield item
            continue
        source, cells = item
        row = {key: str(cells[index] or "").strip() for key, index in columns.items()}
        yield from _add_script(scripts, source, row)
    resolver = FileResolver(root)
    for path in _recordings(root):
        relative = path.relative_to(root).as_posix()
        if path.is_dir():
            yield Rejected(relative, "a link to a folder; links are not followed")
            continue
        try:
            audio = resolver.resolve(relative)
        except ValueError as error:
            yield Rejected(relative, str(error))
            continue
        match = re.fullmatch(r".*?(\d{3})", path.stem)
        if match is None or int(match[1]) not in scripts:
            problem = f"script {match[1]} is not in the table" if match else "no script number"
            yield Rejected(relative, f"{path.name}: {problem}")
            continue
        text, emotion = scripts[int(match[1])]
        label = labels[emotion]
        if label is None:
            yield Rejected(relative, _no_class(emotion, labels))
            continue
        speaker = path.parent.name
        yield Utterance(
            utterance_id=relative.rsplit(".", 1)[0],
            audio_path=audio,
            session=speaker,
            dialogue=f"{speaker}-{match[1]}",
            turn=0,
            speaker=speaker,
            text_raw=text,
            text=tidy(text),
            encoding=table.encoding,
            label=label,
            style="scripted",
        )


def _add_script(
    scripts: dict[int, tuple[str, str]], source: str, row: Mapping[str, str]
) -> Iterator[Rejected]:
    number = row["number"]
    if not number.isdecimal() or len(number) > 9:
        yield Rejected(source, f"column `number`: `{number}` is not a number")
    elif int(number) in scripts:
        yield Rejected(source, f"script {number}: duplicate number; the first row is kept")
    else:
        scripts[int(number)] = (row["script"], row["emotion"])


def _recordings(folder: Path) -> Iterator[Path]:
    """All wav files below a folder in the order of names, and the links to folders."""
    for base, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(base) / name for name in folders if (Path(base) / name).is_symlink())
        yield from (Path(base) / name for name in sorted(files) if name.lower().endswith(".wav"))


def _no_class(emotion: str, labels: LabelReader) -> str:
    return labels.why_rejected(emotion) if emotion else "no label"


_WELLNESS_FOLDERS = ("emotiondialogue", "emotion_dialogue")
_WELLNESS_COLUMNS = {
    "name": ("파일명", "wav_id", "file_name"),
    "text": ("사람문장1", "발화문", "text"),
    "label": ("감정_대분류", "감정", "label"),
}


def load_wellness(config: CorpusConfig, root: Path, labels: LabelReader) -> Iterator[Record]:
    """감성대화 말뭉치: sentences read by female and male voices, one label per sentence.

    `emotiondialogue/F_000001.wav` to `M_005000.wav`, and next to the folder (or in it) a table
    `emotiondialogue.csv` with the file's name, the sentence and the emotion. AI Hub provides
    the sentences as a spreadsheet, which has to be saved as CSV.

    Of its six emotions 기쁨, 분노 and 슬픔 are among the published seven classes; 불안, 당황 and
    상처 are rejected unless the job has classes for them (`labels`). Only the speaker's gender
    is known (from the file name), so it is used as speaker and session.
    """
    on_disk = nfc_names(root)
    folder = next((on_disk[name] for name in _WELLNESS_FOLDERS if name in on_disk), None)
    if folder is None:
        raise wrong_folder("AI Hub's 감성대화 말뭉치", "emotiondialogue/", root)
    inside = nfc_names(root / folder)
    tables = [
        parent / names[f"{name}.csv"]
        for name in _WELLNESS_FOLDERS
        for parent, names in ((root, on_disk), (root / folder, inside))
        if f"{name}.csv" in names
    ]
    if not tables:
        raise UsageError(
            f"{root}: looked for emotiondialogue.csv next to {folder}/; save the corpus's "
            "spreadsheet as CSV with the columns "
            + ", ".join(names[0] for names in _WELLNESS_COLUMNS.values())
        )
    path = require_inside(tables[0], root)
    texts = CorpusText(config.title, config.encoding, lambda: [path], korean=True)
    table = open_table(path, path.name, texts)
    yield from texts.records()
    columns = {}
    for column, aliases in _WELLNESS_COLUMNS.items():
        present = [name for name in aliases if name in table.header]
        if not present:
            table.require(aliases[:1])
        columns[column] = table.header.index(present[0])
    listed = list_files(root / folder, root)
    files = {lower_ending(name): (name, within) for name, within in listed.items()}
    used: set[str] = set()
    for item in table.rows():
        if isinstance(item, Rejected):
            yield item
            continue
        source, cells = item
        row = {column: str(cells[index] or "").strip() for column, index in columns.items()}
        yield from _wellness_row(root / folder, source, row, files, used, table.encoding, labels)
    for name in sorted(listed):
        if name.lower().endswith(".wav") and name.rsplit(".", 1)[0] not in used:
            yield Rejected(f"{folder}/{name}", "no table row names this recording")


def _wellness_row(
    folder: Path,
    source: str,
    row: Mapping[str, str],
    files: Mapping[str, tuple[str, bool]],
    used: set[str],
    encoding: str | None,
    labels: LabelReader,
) -> Iterator[Record]:
    name = lower_ending(row["name"]).removesuffix(".wav")
    file = f"{name}.wav"
    if re.fullmatch(r"[FM]_\d{6}", name) is None:
        text = f"`{row['name']}` is not a file name of this corpus (such as F_000001)"
        yield Rejected(source, text)
        return
    label = labels[row["label"]]
    problem = None
    if name in used:
        problem = duplicate_id(name)
    elif file not in files:
        problem = f"{name}: no wav file in {folder.name}"
    elif not files[file][1]:
        problem = f"{folder.name}/{file} is a link that leaves the corpus"
    elif label is None:
        problem = f"{name}: {_no_class(row['label'], labels)}"
    used.add(name)
    if problem:
        yield Rejected(source, problem)
        return
    yield Utterance(
        utterance_id=name,
        audio_path=f"{folder}/{files[file][0]}",
        session=name[0],
        dialogue=name,
        turn=0,
        speaker=name[0],
        gender=name[0],
        text_raw=row["text"],
        text=tidy(row["text"]),
        encoding=encoding,
        label=label,
        style="scripted",
    )
