"""A KEMDy20 tree: annotation/SessNN_eval.csv and wav/SessionNN/, with its truth."""

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
    """Write the tree below `root` and return what a loader must say of it.

    Args:
        segments_per_session: one number, or one a session; with `glitches`, at least 36
            so that each finds a segment.
        samples: length of every recording, at 16 kHz.
        leaders: the classes that lead each segment's votes; default: drawn.
    """
    truth = Truth(root)
    rng = random.Random(seed)
    (root / "annotation").mkdir(parents=True)
    for sensor in ("EDA", "IBI", "TEMP"):
        (root / sensor).mkdir()
    plan = iter(leaders) if leaders is not None else None
    for order, number in enumerate(sessions):
        session = f"{number:02d}"
        size = segments_per_session
        size = size if isinstance(size, int) else size[order]
        mine = kemdy.plan(rng, size) if plan is None else plan
        segments = [_segment(rng, session, at, next(mine), scripts) for at in range(size)]
        _write_session(truth, rng, session, segments, glitches, samples)
    return truth


def _segment(
    rng: random.Random, session: str, at: int, leaders: Sequence[str], scripts: int
) -> Segment:
    # Two people of the session in turn; the corpus has same-sex pairs too.
    user = int(session) * 2 - (at % 2)
    gender = "M" if int(session) % 3 == 0 else "FM"[at % 2]
    dialogue = f"Sess{session}_script{at % scripts + 1:02d}"
    segment = kemdy.draw(
        rng,
        leaders,
        misspelt="disqust",
        session=f"Session{session}",
        dialogue=dialogue,
        segment=f"{dialogue}_User{user:03d}{gender}_{at + 1:03d}",
        speaker=f"User{user:03d}",
        gender=gender,
        start=round(1.5 + 4.2 * at, 3),
        folder=f"wav/Session{session}",
    )
    if session == "17":
        segment.named = "Sess42" + segment.segment[len("Sess17") :]
    return segment


def _write_session(
    truth: Truth,
    rng: random.Random,
    session: str,
    segments: list[Segment],
    glitches: bool,
    samples: int,
) -> None:
    place = f"annotation/Sess{session}_eval.csv"
    rows = list(segments)
    raw: list[tuple[list[str], str]] = []
    if glitches:
        untouched = kemdy.afflict(segments, rng)
        rows.append(kemdy.again(untouched[0]))
        rows.append(kemdy.again(untouched[1], valence=1.1, arousal=4.9))
        raw = _broken_rows(untouched[2], session)
        # Rows in no order: the start times tell the order of the talk.
        rng.shuffle(rows)
        _keep_first(rows)
    renamed = sum(segment.named != segment.segment for segment in rows)

    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerows(header())
    line = 2
    for number, segment in enumerate(rows, start=1):
        line += 1
        segment.place = f"{place}:{line}"
        writer.writerow(_cells(number, segment))
    for cells, reason in raw:
        line += 1
        writer.writerow(cells)
        truth.rejected.append((f"{place}:{line}", reason))
    if glitches:
        writer.writerow([""] * 37)
    encoding = "utf-8-sig" if glitches and session == "02" else "utf-8"
    (truth.root / place).write_bytes(out.getvalue().encode(encoding))

    kemdy.write_clips(truth, segments, samples)
    if renamed:
        truth.notes.append((place, "renamed ids"))
    if glitches:
        _stray_files(truth, segments, session)
    kemdy.tell(truth, rows)


def _cells(number: int, segment: Segment) -> list[str]:
    times = [str(segment.start), str(round(segment.start + 3.1, 3))]
    return [
        str(number),
        *times,
        segment.named,
        *kemdy.total_cells(segment),
        *kemdy.rater_cells(segment),
    ]


def _broken_rows(sample: Segment, session: str) -> list[tuple[list[str], str]]:
    whole = _cells(0, sample)
    nameless, climbing, foreign = list(whole), list(whole), list(whole)
    nameless[3] = ""
    climbing[3] = "../../../etc/passwd"
    foreign[3] = f"Sess{(int(session) + 1) % 40:02d}{sample.segment[len('SessNN') :]}"
    return [
        (nameless, "no value in column `Segment ID`"),
        (whole[:20], "the row has 20 columns"),
        (climbing, "not a segment id"),
        (foreign, "belongs to another session"),
    ]


def _keep_first(rows: list[Segment]) -> None:
    """Put the row that is kept before its repetition."""
    for at, row in enumerate(rows):
        if row.rejected == "named twice":
            real = next(
                k for k, item in enumerate(rows) if item.segment == row.segment and item is not row
            )
            if real > at:
                rows[at], rows[real] = rows[real], rows[at]


def _stray_files(truth: Truth, segments: Sequence[Segment], session: str) -> None:
    """A recording that no row names, and one that is a link out of the corpus."""
    folder = f"wav/Session{session}"
    stray = f"{folder}/Sess{session}_script01_User000F_999.wav"
    write_wav(truth.root / stray, 39_000 + int(session))
    truth.rejected.append((stray, "no row of the annotation names this recording"))

    outside = truth.root.parent / f"outside-{session}.wav"
    write_wav(outside, 39_500 + int(session))
    victim = next(
        item for item in segments if not item.rejected and not item.notes and item.label is None
    )
    wav = truth.root / folder / f"{victim.segment}.wav"
    wav.unlink()
    wav.symlink_to(outside)
    victim.rejected = "is a link that leaves the corpus"
