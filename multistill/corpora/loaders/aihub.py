"""The three AI Hub corpora that Multi-Still could add to KEMDy (licensed, by application).

Layouts as public code reads them. None of the three names its speakers' sessions, so the
groups that a split keeps together are stated with each loader.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from multistill.config import CLASSES, CorpusConfig
from multistill.corpora.labels import class_of
from multistill.corpora.loaders.cells import gender_of
from multistill.corpora.loaders.csv_parquet import Table, open_table
from multistill.corpora.paths import Enclosure, enclosed, entries, listing, not_the_corpus
from multistill.corpora.records import Note, Record, Rejected, SeenIds, Utterance, named_twice
from multistill.corpora.text import tidy
from multistill.errors import UsageError

DIALOGUE_TABLES = ("4차년도", "5차년도", "5차년도_2차")
_PAIRS = tuple((f"{n}번 감정", f"{n}번 감정세기") for n in range(1, 6))
_INTENSITIES = {"0": 0, "1": 1, "2": 2, "0.0": 0, "1.0": 1, "2.0": 2}


def load_dialogue(config: CorpusConfig, root: Path) -> Iterator[Record]:
    """감정 분류를 위한 대화 음성 데이터셋: three yearly tables, five raters with intensities.

    `4차년도.csv`, `5차년도.csv`, `5차년도_2차.csv` in CP949, each beside a folder of its name
    with `<wav_id>.wav` (or one folder further down, as one of the archives unpacks). A
    vote weighs its intensity (0 to 2) plus one, as published.

    Speakers are not named. People of one gender and age count as one speaker and one
    session, which keeps the same voice of one year on one side of a split.
    """
    found = entries(root)
    names = [name for name in DIALOGUE_TABLES if f"{name}.csv" in found]
    if not names:
        looked_for = ", ".join(f"{name}.csv" for name in DIALOGUE_TABLES)
        raise not_the_corpus("AI Hub's dialogue corpus", looked_for, root)
    seen = SeenIds()
    for name in names:
        table = open_table(enclosed(root / found[f"{name}.csv"], root), f"{name}.csv")
        yield from _dialogue_table(config, root, table, found.get(name, name), seen)


def _dialogue_table(
    config: CorpusConfig, root: Path, table: Table, folder: str, seen: SeenIds
) -> Iterator[Record]:
    columns = {_squeezed(name): at for at, name in enumerate(table.header)}
    for wanted in ("wav_id", "발화문", *(name for pair in _PAIRS for name in pair)):
        if _squeezed(wanted) not in columns:
            table.require([wanted])
    find = _finder(root, root / folder)
    for item in table.rows():
        if isinstance(item, Rejected):
            yield item
            continue
        place, raw = item
        row = {key: str(raw[at] or "").strip() for key, at in columns.items()}
        name = row["wav_id"]
        if not name:
            yield Rejected(place, "no value in column `wav_id`")
            continue
        try:
            audio = find(f"{name}.wav")
        except ValueError as error:
            yield Rejected(place, str(error))
            continue
        votes, ratings, notes = _weighted_votes(config, row)
        if not any(votes):
            yield Rejected(place, f"{name}: no votes")
            continue
        if not seen.is_new(name):
            yield Rejected(place, named_twice(name))
            continue
        yield from (Note(place, kind, f"{name}: {text}") for kind, text in notes)
        gender = gender_of(row.get("성별", ""))
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
        )


def _weighted_votes(
    config: CorpusConfig, row: Mapping[str, str]
) -> tuple[tuple[int, ...], tuple[str | None, ...], list[tuple[str, str]]]:
    """Votes, what each rater said, and the notes on what could not be counted."""
    votes = [0] * len(CLASSES)
    ratings: list[str | None] = []
    notes: list[tuple[str, str]] = []
    for emotion, strength in _PAIRS:
        named, weight = row[_squeezed(emotion)], row[_squeezed(strength)]
        rating = class_of(named, config.labels)
        ratings.append(rating)
        if rating is None:
            if named:
                notes.append(("unknown vote", f"the vote for {named} is not counted"))
            continue
        if weight not in _INTENSITIES:
            notes.append(("no intensity", f"`{weight}` is not 0, 1 or 2 and is read as 0"))
        votes[CLASSES.index(rating)] += 1 + _INTENSITIES.get(weight, 0)
    return tuple(votes), tuple(ratings), notes


def _squeezed(name: str) -> str:
    """Releases differ in spaces: `4번 감정세기` and `4번감정세기`."""
    return "".join(name.split())


def _finder(root: Path, folder: Path) -> Callable[[str], str]:
    """Looks a file up in `folder`, then in the folders right below it."""
    enclosure = Enclosure(root)
    inner = [
        child.name
        for child in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if child.is_dir()
    ]

    def find(name: str) -> str:
        first: ValueError | None = None
        for part in ("", *inner):
            try:
                return enclosure.file(f"{folder.name}/{part}/{name}")
            except ValueError as error:
                first = first or error
        assert first is not None
        raise first

    return find


def load_scripted(config: CorpusConfig, root: Path) -> Iterator[Record]:
    """감정분류용 데이터셋: the same scripts read by many speakers, one label a script.

    `스크립트.csv` in CP949 with `number`, `script`, `emotion`; recordings in a folder a
    speaker, whose names end in the script's three digits. The folder is the speaker and
    the session. Every sentence comes back in every folder, so no split keeps the text
    apart; the quality report counts that.
    """
    name = entries(root).get("스크립트.csv")
    if name is None:
        raise not_the_corpus("AI Hub's scripted corpus", "스크립트.csv", root)
    table = open_table(enclosed(root / name, root), "스크립트.csv")
    scripts: dict[int, tuple[str, str]] = {}
    columns = {name.casefold(): at for at, name in enumerate(table.header)}
    for wanted in ("number", "script", "emotion"):
        if wanted not in columns:
            table.require([wanted])
    for item in table.rows():
        if isinstance(item, Rejected):
            yield item
            continue
        place, raw = item
        yield from _script(
            scripts, place, {key: str(raw[at] or "").strip() for key, at in columns.items()}
        )
    enclosure = Enclosure(root)
    for path in _recordings(root):
        relative = path.relative_to(root).as_posix()
        if path.is_dir():
            yield Rejected(relative, "a link to a folder; links are not followed")
            continue
        try:
            audio = enclosure.file(relative)
        except ValueError as error:
            yield Rejected(relative, str(error))
            continue
        found = re.fullmatch(r".*?(\d{3})", path.stem)
        if found is None or int(found[1]) not in scripts:
            what = f"script {found[1]} is not in the table" if found else "no script number"
            yield Rejected(relative, f"{path.name}: {what}")
            continue
        text, emotion = scripts[int(found[1])]
        label = class_of(emotion, config.labels)
        if label is None:
            yield Rejected(relative, _unmapped(emotion))
            continue
        speaker = path.parent.name
        yield Utterance(
            utterance_id=relative.rsplit(".", 1)[0],
            audio_path=audio,
            session=speaker,
            dialogue=f"{speaker}-{found[1]}",
            turn=0,
            speaker=speaker,
            text_raw=text,
            text=tidy(text),
            encoding=table.encoding,
            label=label,
        )


def _script(
    scripts: dict[int, tuple[str, str]], place: str, row: Mapping[str, str]
) -> Iterator[Rejected]:
    number = row["number"]
    if not number.isdecimal() or len(number) > 9:
        yield Rejected(place, f"column `number` says `{number}`, which is no number")
    elif int(number) in scripts:
        yield Rejected(place, f"script {number}: named twice; the first row is kept")
    else:
        scripts[int(number)] = (row["script"], row["emotion"])


def _recordings(folder: Path) -> Iterator[Path]:
    """Every wav below a folder in the order of names, and the links to folders."""
    for base, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(base) / name for name in folders if (Path(base) / name).is_symlink())
        yield from (Path(base) / name for name in sorted(files) if name.lower().endswith(".wav"))


def _unmapped(emotion: str) -> str:
    return (
        f"label `{emotion}` is none of the seven classes; map it with `labels` in the job file"
        if emotion
        else "no label"
    )


_WELLNESS_FOLDERS = ("emotiondialogue", "emotion_dialogue")
_WELLNESS_COLUMNS = {
    "name": ("파일명", "wav_id", "file_name"),
    "text": ("사람문장1", "발화문", "text"),
    "label": ("감정_대분류", "감정", "label"),
}


def load_wellness(config: CorpusConfig, root: Path) -> Iterator[Record]:
    """감성대화 말뭉치: sentences read by a woman's and a man's voice, one label each.

    `emotiondialogue/F_000001.wav` to `M_005000.wav`, and beside the folder (or in it) a
    table `emotiondialogue.csv` with the file's name, the sentence and the class of
    emotion. AI Hub hands the sentences out as a spreadsheet, which is saved as CSV once.

    Of its six classes 기쁨, 분노 and 슬픔 are ours; 불안, 당황 and 상처 are rejected unless
    `labels` maps them. The gender in the name is all that is known of the speaker, so it
    is speaker and session.
    """
    found = entries(root)
    folder = next((found[name] for name in _WELLNESS_FOLDERS if name in found), None)
    if folder is None:
        raise not_the_corpus("AI Hub's 감성대화 말뭉치", "emotiondialogue/", root)
    tables = [
        path
        for name in _WELLNESS_FOLDERS
        for path in (root / f"{name}.csv", root / folder / f"{name}.csv")
        if path.is_file()
    ]
    if not tables:
        raise UsageError(
            f"{root}: looked for emotiondialogue.csv beside {folder}/; save the corpus's "
            "spreadsheet as CSV with the columns "
            + ", ".join(names[0] for names in _WELLNESS_COLUMNS.values())
        )
    table = open_table(enclosed(tables[0], root), tables[0].name)
    names = {}
    for ours, theirs in _WELLNESS_COLUMNS.items():
        present = [name for name in theirs if name in table.header]
        if not present:
            table.require(theirs[:1])
        names[ours] = table.header.index(present[0])
    files = listing(root / folder, root)
    named: set[str] = set()
    for item in table.rows():
        if isinstance(item, Rejected):
            yield item
            continue
        place, raw = item
        row = {ours: str(raw[at] or "").strip() for ours, at in names.items()}
        yield from _wellness_row(config, root / folder, place, row, files, named, table.encoding)
    for name in sorted(files):
        if name.lower().endswith(".wav") and name.rsplit(".", 1)[0] not in named:
            yield Rejected(f"{folder}/{name}", "no row of the table names this recording")


def _wellness_row(
    config: CorpusConfig,
    folder: Path,
    place: str,
    row: Mapping[str, str],
    files: Mapping[str, bool],
    named: set[str],
    encoding: str | None,
) -> Iterator[Record]:
    name = row["name"].removesuffix(".wav")
    file = f"{name}.wav"
    if re.fullmatch(r"[FM]_\d{6}", name) is None:
        text = f"`{row['name']}` is no name of this corpus, such as F_000001"
        yield Rejected(place, text)
        return
    label = class_of(row["label"], config.labels)
    problem = None
    if name in named:
        problem = f"{name}: named twice; the first row is kept"
    elif file not in files:
        problem = f"{name}: no wav file in {folder.name}"
    elif not files[file]:
        problem = f"{folder.name}/{file} is a link that leaves the corpus"
    elif label is None:
        problem = f"{name}: {_unmapped(row['label'])}"
    named.add(name)
    if problem:
        yield Rejected(place, problem)
        return
    yield Utterance(
        utterance_id=name,
        audio_path=f"{folder}/{file}",
        session=name[0],
        dialogue=name,
        turn=0,
        speaker=name[0],
        gender=name[0],
        text_raw=row["text"],
        text=tidy(row["text"]),
        encoding=encoding,
        label=label,
    )
