"""A KEMDy19 folder tree, with expected records.

Two annotation tables per session, and one folder of clips per dialogue.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from helpers.generators import kemdy
from helpers.generators.kemdy import Segment
from helpers.generators.kemdy20 import RATERS
from helpers.generators.parts import CLASSES, Truth, votes_for, write_wav


def header() -> list[list[str]]:
    """The two header rows, 43 columns."""
    first = ["Numb"]
    second = [""]
    for signal in ("Wav", "ECG", "E4-EDA", "E4-TEMP"):
        first += [signal, ""]
        second += ["start", "end"]
    first.append("Segment ID")
    second.append("")
    for group in ("Total Evaluation", *RATERS):
        first += [group, "", ""]
        second += ["Emotion", "Valence", "Arousal"]
    return [first, second]


@dataclass
class Table:
    """One of the two tables of a session, as written."""

    source: str
    rows: list[Segment] = field(default_factory=list)
    broken: list[tuple[list[str], str]] = field(default_factory=list)

    def write(self, truth: Truth, encoding: str) -> None:
        out = io.StringIO(newline="")
        writer = csv.writer(out)
        writer.writerows(header())
        for line, segment in enumerate(self.rows, start=3):
            segment.source = f"{self.source}:{line}"
            writer.writerow(cells(line - 2, segment))
        for line, (row, reason) in enumerate(self.broken, start=3 + len(self.rows)):
            writer.writerow(row)
            truth.rejected.append((f"{self.source}:{line}", reason))
        (truth.root / self.source).write_bytes(out.getvalue().encode(encoding))


def cells(number: int, segment: Segment) -> list[str]:
    start, end = str(segment.start), str(round(segment.start + 3.1, 3))
    return [
        str(number),
        *[start, end] * 4,
        segment.written_id,
        *kemdy.total_cells(segment),
        *kemdy.rater_cells(segment),
    ]


@dataclass(frozen=True)
class Shape:
    """The classes with the most votes of one segment, its scene and its speaker's gender."""

    leaders: Sequence[str]
    scene: str
    gender: str


def make(
    root: Path,
    sessions: Iterable[int] = (1, 2, 3),
    segments_per_session: int = 40,
    glitches: bool = True,
    seed: int = 0,
    samples: int = 640,
    shapes: Iterable[Sequence[Shape]] | None = None,
    heard_only: Mapping[int, int] | None = None,
    unpaired: Collection[str] = (),
) -> Truth:
    """Write the tree below `root` and return the records a loader must yield for it.

    Args:
        segments_per_session: with `glitches`, at least 40, one for each glitch.
        shapes: the segments of each session; default: random.
        heard_only: session -> number of segments that only the listener's table has; default:
            one per session with `glitches`.
        unpaired: segment ids without wav and txt.
    """
    truth = Truth(root)
    rng = random.Random(seed)
    (root / "annotation").mkdir(parents=True)
    for sensor in ("ECG", "EDA", "TEMP"):
        (root / sensor).mkdir()
    given = iter(shapes) if shapes is not None else None
    for number in sessions:
        session = f"{number:02d}"
        session_shapes = next(given) if given is not None else _shapes(rng, segments_per_session)
        segments = _segments(rng, session, session_shapes)
        for segment in segments:
            if segment.segment in unpaired:
                segment.wav = segment.txt = False
                segment.rejected = "no wav and no txt file"
        only = int(glitches) if heard_only is None else heard_only.get(number, 0)
        _write_session(truth, rng, session, segments, glitches, samples, only)
    return truth


def _shapes(rng: random.Random, number: int) -> list[Shape]:
    scenes = ("script01", "script02", "impro01")
    return [
        Shape(leaders, scenes[index % len(scenes)], "FM"[index // len(scenes) % 2])
        for index, leaders in enumerate(kemdy.draw_leaders(rng, number))
    ]


def _segments(rng: random.Random, session: str, shapes: Sequence[Shape]) -> list[Segment]:
    counts: dict[str, int] = {}
    segments = []
    for index, shape in enumerate(shapes):
        dialogue = f"Sess{session}_{shape.scene}"
        key = f"{dialogue}_{shape.gender}"
        counts[key] = counts.get(key, 0) + 1
        segment = kemdy.draw(
            rng,
            shape.leaders,
            session=f"Session{session}",
            dialogue=dialogue,
            segment=f"{key}{counts[key]:03d}",
            speaker=f"Session{session}_{shape.gender}",
            gender=shape.gender,
            start=round(0.8 + 3.9 * index, 3),
            folder=f"wav/Session{session}/{dialogue}",
        )
        # The transcripts of this corpus are UTF-8.
        segment.encoding = "utf-8"
        segments.append(segment)
    return segments


def listener(rng: random.Random, segment: Segment) -> Segment:
    """The listener's row for a segment, whose votes have another leader."""
    leaders = {name for name in CLASSES if name in segment.total}
    votes = votes_for(rng, [rng.choice([name for name in CLASSES if name not in leaders])])
    row = replace(
        segment, cells=votes, total=max(set(votes), key=votes.count), rejected=None, notes=[]
    )
    row.scales = ("2.2", "4.4")
    return row


def _write_session(
    truth: Truth,
    rng: random.Random,
    session: str,
    segments: list[Segment],
    glitches: bool,
    samples: int,
    heard_only: int,
) -> None:
    tables = {g: Table(f"annotation/Session{session}_{g}_res.csv") for g in "FM"}
    unchanged = kemdy.apply_glitches(segments, rng) if glitches else list(segments)
    heard = {segment.segment: listener(rng, segment) for segment in segments}
    for gender, table in tables.items():
        table.rows = [
            segment if segment.gender == gender else heard[segment.segment] for segment in segments
        ]
        if glitches:
            rng.shuffle(table.rows)
    for index, segment in enumerate(unchanged[:heard_only]):
        extra = replace(segment, segment=f"{segment.segment[:-3]}{900 + index}")
        extra.written_id = extra.segment
        row = listener(rng, extra)
        row.rejected = "only in the listener's table"
        tables["FM"[extra.gender == "F"]].rows.append(row)
        heard[extra.segment] = row
    repeated: list[Segment] = []
    if glitches:
        repeated = _glitches(rng, tables, unchanged[heard_only:], heard, session)
    for gender, table in tables.items():
        table.write(truth, "utf-8-sig" if glitches and gender == "M" else "utf-8")

    kemdy.write_clips(truth, segments, samples)
    if glitches:
        # Such recordings may exist on disk; the loader must report each of them once.
        for row in heard.values():
            if row.rejected and row.written_id == row.segment:
                write_wav(truth.root / row.folder / f"{row.segment}.wav", 38_000 + int(session))
    for row in heard.values():
        if row.rejected:
            truth.rejected.append((row.source, row.rejected))
        truth.notes += [(row.source, kind) for kind in row.notes]
    if glitches:
        stray = f"wav/Session{session}/Sess{session}_impro09/Sess{session}_impro09_M001.wav"
        (truth.root / stray).parent.mkdir()
        write_wav(truth.root / stray, 39_000 + int(session))
        truth.rejected.append((stray, "no annotation row names this recording"))
    kemdy.add_expected(truth, segments + repeated)


def _glitches(
    rng: random.Random,
    tables: dict[str, Table],
    unchanged: Sequence[Segment],
    heard: dict[str, Segment],
    session: str,
) -> list[Segment]:
    """Change single rows of the two tables; return the repeated rows of speakers."""
    twice, differing, heard_twice, alone, renamed = unchanged[:5]
    repeated = [
        kemdy.duplicate(twice),
        # Some ids of the corpus have two different mean valences and arousals.
        kemdy.duplicate(differing, valence=1.1, arousal=4.9),
    ]
    for row in repeated:
        tables[row.gender].rows.append(row)

    extra = replace(heard[heard_twice.segment], notes=["repeated row"])
    tables["FM"[heard_twice.gender == "F"]].rows.append(extra)
    heard[f"{heard_twice.segment} again"] = extra

    # An id missing from the listener's table, and one written differently there (session 3).
    for segment in (alone, renamed):
        segment.notes.append("one table only")
    tables["FM"[alone.gender == "F"]].rows.remove(heard.pop(alone.segment))
    other = heard[renamed.segment]
    other.written_id = f"{renamed.segment[:-3]}800"
    other.rejected = "only in the listener's table"

    complete = cells(0, twice)
    without_id, outside, other_session = list(complete), list(complete), list(complete)
    without_id[9] = ""
    outside[9] = "../../secret_F001"
    other_session[9] = f"Sess{int(session) + 1:02d}{twice.segment[len('SessNN') :]}"
    tables["F"].broken = [
        (without_id, "no value in column `Segment ID`"),
        (complete[:42], "the row has 42 columns"),
        (outside, "is not a KEMDy19 segment id"),
        (other_session, "belongs to another session"),
    ]
    return repeated
