"""A user's own corpus: recordings in arbitrary folders and one CSV or Parquet table."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.generators.parts import CLASSES, Truth, counted, sentence, votes_for, write_wav
from multistill.corpora.records import Utterance

Form = Literal["counts", "votes", "raters", "label"]
Row = dict[str, Any]

RATERS = tuple(f"rater_{letter}" for letter in "abcde")


@dataclass
class Entry:
    """One row as written, and the record it must give."""

    cells: Row
    expected: dict[str, Any]
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    wav: bool = True


def make(
    folder: Path,
    name: str = "corpus.csv",
    form: Form = "counts",
    rows: int = 24,
    encoding: str = "utf-8",
    delimiter: str = ",",
    renamed: Mapping[str, str] | None = None,
    glitches: bool = True,
    seed: int = 0,
) -> Truth:
    """Write `folder/name` with its recordings; the truth's root is the table.

    Args:
        form: how the table gives emotions.
        rows: with `glitches`, at least 20.
        renamed: column name of multistill -> the table's, as in the job file.
    """
    rng = random.Random(seed)
    truth = Truth(folder / name)
    entries = [_entry(rng, index, form, name) for index in range(rows)]
    if glitches:
        for index, glitch in enumerate(_GLITCHES, start=1):
            glitch(entries[index], entries[0], form)
    for index, entry in enumerate(entries):
        path = folder / f"wav/{index % 3}/{index:04d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.wav:
            write_wav(path, index)
    outside = folder.parent / "elsewhere.wav"
    write_wav(outside, 5000)
    (folder / "wav/link.wav").symlink_to(outside)
    (folder / "wav/door").symlink_to(folder.parent)

    parquet = name.endswith(".parquet")
    first = 1 if parquet else 2
    table_encoding = None if parquet else encoding
    for line, entry in enumerate(entries, start=first):
        source = f"{name}:{line}"
        if entry.reason:
            truth.rejected.append((source, entry.reason))
            continue
        truth.notes += [(source, kind) for kind in entry.notes]
        audio = folder / entry.expected.pop("audio")
        truth.utterances.append(
            Utterance(audio_path=str(audio), encoding=table_encoding, **entry.expected)
        )
    cells = [
        {(renamed or {}).get(column, column): value for column, value in entry.cells.items()}
        for entry in entries
    ]
    if parquet:
        pq.write_table(pa.Table.from_pylist(cells), truth.root)
    else:
        truth.root.write_bytes(_csv(cells, delimiter).encode(encoding))
    return truth


def _csv(cells: list[Row], delimiter: str) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(cells[0]), delimiter=delimiter)
    writer.writeheader()
    for row in cells:
        writer.writerow({k: str(v) if isinstance(v, list) else v for k, v in row.items()})
    return out.getvalue()


def _entry(rng: random.Random, index: int, form: Form, name: str) -> Entry:
    parquet = name.endswith(".parquet")
    leaders = rng.sample(CLASSES, 2 if index % 5 == 4 else 1)
    raters = votes_for(rng, leaders, 10 if form in ("counts", "votes") else 5)
    votes = counted(raters)
    text = sentence(rng)
    dialogue, gender = f"d{index // 6}", rng.choice("FM")
    valence, arousal = round(rng.uniform(1, 5), 2), round(rng.uniform(1, 5), 2)
    cells: Row = {
        "utterance_id": f"u{index:04d}",
        "audio_path": f"wav/{index % 3}/{index:04d}.wav",
        # Two spaces, which the manifest's text reduces to one.
        "text": text.replace(" ", "  ", 1),
        "speaker": f"p{index % 4}",
        "session": f"s{index // 6}",
        "dialogue": dialogue,
        "gender": {"F": "female", "M": "m"}[gender],
        "valence": valence if parquet else str(valence),
        "arousal": arousal if parquet else str(arousal),
        "split": ("train", "dev", "test")[index % 3],
    }
    label: str | None = None
    ratings: tuple[str | None, ...] | None = ()
    if form == "counts":
        # A class without votes may be left blank.
        cells |= {c: v if parquet else str(v or "") for c, v in zip(CLASSES, votes, strict=True)}
    elif form == "votes":
        cells["votes"] = list(votes)
    elif form == "raters":
        ratings = tuple(raters)
        cells |= dict(zip(RATERS, raters, strict=True))
    else:
        cells["label"] = ";".join(leaders)
        label = leaders[0] if len(leaders) == 1 else None
        votes = counted(leaders)
        ratings = () if label else None
    return Entry(
        cells,
        {
            "audio": cells["audio_path"],
            "utterance_id": cells["utterance_id"],
            "session": cells["session"],
            "dialogue": dialogue,
            "turn": index % 6,
            "speaker": cells["speaker"],
            "gender": gender,
            "text_raw": cells["text"],
            "text": text,
            "votes": None if label else votes,
            "label": label,
            "valence": valence,
            "arousal": arousal,
            "ratings": ratings,
            "split": ("train", "valid", "test")[index % 3],
        },
    )


Glitch = Callable[[Entry, Entry, Form], None]
"""Changes an entry; the second argument is the table's first entry."""


def _set(reason: str, wav: bool = True, **cells: Any) -> Glitch:
    def glitch(entry: Entry, first: Entry, form: Form) -> None:
        entry.cells |= cells
        entry.reason, entry.wav = reason, wav

    return glitch


def _missing_wav(entry: Entry, first: Entry, form: Form) -> None:
    entry.wav, entry.reason = False, "no such file"


def _duplicate_id(entry: Entry, first: Entry, form: Form) -> None:
    entry.cells["utterance_id"] = first.cells["utterance_id"]
    entry.reason = "duplicate id"


def _no_text(entry: Entry, first: Entry, form: Form) -> None:
    entry.cells["text"] = None
    entry.expected |= {"text": "", "text_raw": ""}


def _off_scale(entry: Entry, first: Entry, form: Form) -> None:
    entry.cells["valence"] = 7.5
    entry.expected["valence"] = None
    entry.notes.append("valence off the scale")


def _no_label(entry: Entry, first: Entry, form: Form) -> None:
    for name in (*CLASSES, *RATERS, "votes", "label"):
        if name in entry.cells:
            entry.cells[name] = [0] * 7 if name == "votes" else None
    entry.reason = "no label and no votes"


def _unknown_class(entry: Entry, first: Entry, form: Form) -> None:
    if form == "label":
        entry.cells["label"] = "boredom"
        entry.reason = "label `boredom` is none of the 7 classes"
    elif form == "raters":
        entry.cells["rater_a"] = "boredom"
        ratings = (None, *entry.expected["ratings"][1:])
        entry.expected |= {"ratings": ratings, "votes": counted(ratings)}
        entry.notes.append("unknown vote")
    elif form == "counts":
        entry.cells["happy"] = -1
        entry.reason = "column `happy`: `-1` is not a whole number"
    else:
        entry.cells["votes"] = [1, 2, 3]
        entry.reason = "column `votes` has 3 counts, needs 7"


def _speaker_only(entry: Entry, first: Entry, form: Form) -> None:
    entry.cells["session"] = None
    entry.expected["session"] = entry.expected["speaker"]


def _session_only(entry: Entry, first: Entry, form: Form) -> None:
    entry.cells["speaker"] = None
    entry.expected["speaker"] = entry.expected["session"]


def _no_split(entry: Entry, first: Entry, form: Form) -> None:
    entry.cells["split"] = None
    entry.expected["split"] = None


def _unknown_split(entry: Entry, first: Entry, form: Form) -> None:
    # Not the name of a part: an error only with `split.by: column`.
    entry.cells["split"] = entry.expected["split"] = "holdout"


_GLITCHES: tuple[Glitch, ...] = (
    _missing_wav,
    _duplicate_id,
    _no_text,
    _off_scale,
    _no_label,
    _unknown_class,
    _speaker_only,
    _session_only,
    _no_split,
    _set("leaves the corpus folder", audio_path="../elsewhere.wav"),
    _set("leaves the corpus folder", audio_path="wav/../../elsewhere.wav"),
    _set("leaves the corpus folder", audio_path="/etc/passwd"),
    _set("is a link that leaves the corpus folder", audio_path="wav/link.wav"),
    _set("leaves the corpus folder", audio_path="wav/door/elsewhere.wav"),
    _set("not a file", audio_path="wav/0"),
    _set("no value in column `audio_path`", audio_path=None),
    _set("no value in column `speaker` or `session`", speaker=None, session=None),
    _unknown_split,
)
