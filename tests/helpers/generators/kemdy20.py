"""A KEMDy20 folder tree, with expected records: annotation/SessNN_eval.csv and wav/SessionNN/."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from helpers.generators import kemdy
from helpers.generators.kemdy import Segment
from helpers.generators.parts import Truth, write_wav

RATERS = tuple(f"Eval{number:02d}{'FM'[number % 2]}" for number in range(1, 11))


def header() -> list[list[str]]:
    """The two header rows, 37 columns."""
    first = ["Numb", "WAV", " ", "Segment ID", "Total Evaluation", " ", " "]
    second = ["", "start", "end", "", "Emotion", "Valence", "Arousal"]
    for rater in RATERS:
        first += [rater, " ", " "]
        second += ["Emotion", "Valence", "Arousal"]
    return [first, second]


def make(
    root: Path,
    sessions: Iterable[int] = (1, 2, 17),
    segments_per_session: int | Sequence[int] = 36,
    scripts: int = 3,
    glitches: bool = True,
    seed: int = 0,
    samples: int = 640,
    leaders: Iterable[Sequence[str]] | None = None,
) -> Truth:
    """Write the tree below `root` and return the records a loader must yield for it.

    Args:
        segments_per_session: one number, or one per session; with `glitches`, at least 36,
            one for each glitch.
        samples: length of every recording, at 16 kHz.
        leaders: the classes with the most votes of each segment; default: random.
    """
    truth = Truth(root)
    rng = random.Random(seed)
    (root / "annotation").mkdir(parents=True)
    for sensor in ("EDA", "IBI", "TEMP"):
        (root / sensor).mkdir()
    given = iter(leaders) if leaders is not None else None
    for order, number in enumerate(sessions):
        session = f"{number:02d}"
        size = segments_per_session
        size = size if isinstance(size, int) else size[order]
        source = kemdy.draw_leaders(rng, size) if given is None else given
        segments = [_segment(rng, session, index, next(source), scripts) for index in range(size)]
        _write_session(truth, rng, session, segments, glitches, samples)
    return truth


def _segment(
    rng: random.Random, session: str, index: int, leaders: Sequence[str], scripts: int
) -> Segment:
    # The two people of the session alternate; the corpus has same-sex pairs too.
    user = int(session) * 2 - (index % 2)
    gender = "M" if int(session) % 3 == 0 else "FM"[index % 2]
    dialogue = f"Sess{session}_script{index % scripts + 1:02d}"
    segment = kemdy.draw(
        rng,
        leaders,
        misspelt="disqust",
        session=f"Session{session}",
        dialogue=dialogue,
        segment=f"{dialogue}_User{user:03d}{gender}_{index + 1:03d}",
        speaker=f"User{user:03d}",
        gender=gender,
        start=round(1.5 + 4.2 * index, 3),
        folder=f"wav/Session{session}",
    )
    if session == "17":
        segment.written_id = "Sess42" + segment.segment[len("Sess17") :]
    return segment


def _write_session(
    truth: Truth,
    rng: random.Random,
    session: str,
    segments: list[Segment],
    glitches: bool,
    samples: int,
) -> None:
    table = f"annotation/Sess{session}_eval.csv"
    rows = list(segments)
    broken: list[tuple[list[str], str]] = []
    if glitches:
        unchanged = kemdy.apply_glitches(segments, rng)
        rows.append(kemdy.duplicate(unchanged[0]))
        rows.append(kemdy.duplicate(unchanged[1], valence=1.1, arousal=4.9))
        broken = _broken_rows(unchanged[2], session)
        # Rows in random order: turns must follow the start times.
        rng.shuffle(rows)
        _keep_first(rows)
    renamed = sum(segment.written_id != segment.segment for segment in rows)

    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerows(header())
    line = 2
    for number, segment in enumerate(rows, start=1):
        line += 1
        segment.source = f"{table}:{line}"
        writer.writerow(_cells(number, segment))
    for cells, reason in broken:
        line += 1
        writer.writerow(cells)
        truth.rejected.append((f"{table}:{line}", reason))
    if glitches:
        writer.writerow([""] * 37)
    encoding = "utf-8-sig" if glitches and session == "02" else "utf-8"
    (truth.root / table).write_bytes(out.getvalue().encode(encoding))

    kemdy.write_clips(truth, segments, samples)
    if renamed:
        truth.notes.append((table, "renamed ids"))
    if glitches:
        _stray_files(truth, segments, session)
    kemdy.add_expected(truth, rows)


def _cells(number: int, segment: Segment) -> list[str]:
    times = [str(segment.start), str(round(segment.start + 3.1, 3))]
    return [
        str(number),
        *times,
        segment.written_id,
        *kemdy.total_cells(segment),
        *kemdy.rater_cells(segment),
    ]


def _broken_rows(sample: Segment, session: str) -> list[tuple[list[str], str]]:
    complete = _cells(0, sample)
    without_id, outside, other_session = list(complete), list(complete), list(complete)
    without_id[3] = ""
    outside[3] = "../../../etc/passwd"
    other_session[3] = f"Sess{(int(session) + 1) % 40:02d}{sample.segment[len('SessNN') :]}"
    return [
        (without_id, "no value in column `Segment ID`"),
        (complete[:20], "the row has 20 columns"),
        (outside, "is not a KEMDy20 segment id"),
        (other_session, "belongs to another session"),
    ]


def _keep_first(rows: list[Segment]) -> None:
    """Put the row that is kept before its duplicate."""
    for index, row in enumerate(rows):
        if row.rejected == kemdy.DUPLICATE:
            kept = next(
                k for k, item in enumerate(rows) if item.segment == row.segment and item is not row
            )
            if kept > index:
                rows[index], rows[kept] = rows[kept], rows[index]


def _stray_files(truth: Truth, segments: Sequence[Segment], session: str) -> None:
    """A recording that no row names, and one that is a link out of the corpus."""
    folder = f"wav/Session{session}"
    stray = f"{folder}/Sess{session}_script01_User000F_999.wav"
    write_wav(truth.root / stray, 39_000 + int(session))
    truth.rejected.append((stray, "no annotation row names this recording"))

    outside = truth.root.parent / f"outside-{session}.wav"
    write_wav(outside, 39_500 + int(session))
    linked = next(
        item for item in segments if not item.rejected and not item.notes and item.label is None
    )
    wav = truth.root / folder / f"{linked.segment}.wav"
    wav.unlink()
    wav.symlink_to(outside)
    linked.rejected = "is a link that leaves the corpus"
