"""Segments of a generated KEMDy corpus, and the glitches common to KEMDy19 and KEMDy20."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from helpers.generators.parts import CLASSES, Truth, counted, sentence, tagged, votes_for, write_wav
from multistill.corpora.records import Utterance


@dataclass
class Segment:
    """A segment as written (`written_id`, `cells`) and as intended (the other fields).

    `rejected` is a substring of the reason for which the loader must reject it, `notes` the
    kinds of notes the loader must yield for it.
    """

    session: str
    dialogue: str
    segment: str
    speaker: str
    gender: str
    start: float
    text: str
    votes: list[str]
    total: str
    valence: float | None
    arousal: float | None
    text_raw: str = ""
    encoding: str = "cp949"
    written_id: str = ""
    cells: list[str] = field(default_factory=list)
    scales: tuple[str, str] | None = None
    folder: str = ""
    wav: bool = True
    txt: bool = True
    txt_bytes: bytes | None = None
    rejected: str | None = None
    notes: list[str] = field(default_factory=list)
    ratings: list[str | None] = field(default_factory=list)
    label: str | None = None
    source: str = ""

    @property
    def style(self) -> str | None:
        """KEMDy20 calls all its conversations scripts; they are free talk."""
        if "_User" in self.segment:
            return None
        return "scripted" if "script" in self.dialogue else "improvised"

    def expected(self, root: Path, turn: int) -> Utterance:
        votes = counted(self.ratings)
        return Utterance(
            utterance_id=self.segment,
            audio_path=str(root / self.folder / f"{self.segment}.wav"),
            session=self.session,
            dialogue=self.dialogue,
            turn=turn,
            speaker=self.speaker,
            gender=self.gender,
            text_raw=self.text_raw,
            text=self.text,
            encoding=self.encoding,
            votes=votes if sum(votes) else None,
            label=self.label,
            valence=self.valence,
            arousal=self.arousal,
            ratings=tuple(self.ratings),
            style=self.style,
        )

    def write_files(self, root: Path, number: int, samples: int) -> None:
        stem = root / self.folder / self.segment
        if self.wav:
            write_wav(stem.with_suffix(".wav"), number, samples)
        if self.txt:
            data = self.txt_bytes
            if data is None:
                data = (self.text_raw + "\n").encode(self.encoding)
            stem.with_suffix(".txt").write_bytes(data)


def draw(
    rng: random.Random, leaders: Sequence[str], misspelt: str | None = None, **fields: object
) -> Segment:
    """A segment in which exactly `leaders` have the most votes; the total names them in any order.

    `misspelt` is the spelling of disgust in Total Evaluation; `fields` are further fields.
    """
    votes = votes_for(rng, leaders)
    names = [misspelt if misspelt and name == "disgust" else name for name in leaders]
    rng.shuffle(names)
    text = sentence(rng)
    valence, arousal = round(rng.uniform(1, 5), 1), round(rng.uniform(1, 5), 1)
    raw = tagged(rng, text) if rng.random() < 0.4 else text
    return Segment(
        text=text,
        text_raw=raw,
        votes=votes,
        cells=list(votes),
        ratings=list(votes),
        total=";".join(names),
        valence=valence,
        arousal=arousal,
        written_id=str(fields["segment"]),
        **fields,  # type: ignore[arg-type]
    )


def draw_leaders(rng: random.Random, number: int) -> Iterator[list[str]]:
    """Leaders of `number` segments: mostly one class, occasionally two or three."""
    for _ in range(number):
        width = rng.choices((1, 2, 3), (90, 8, 2))[0]
        yield rng.sample(CLASSES, width)


Glitch = Callable[[Segment], None]


def _no_wav(segment: Segment) -> None:
    segment.wav, segment.rejected = False, "no wav file"


def _no_txt(segment: Segment) -> None:
    segment.txt, segment.rejected = False, "no txt file"


def _no_files(segment: Segment) -> None:
    segment.wav = segment.txt = False
    segment.rejected = "no wav and no txt file"


def _empty_transcript(segment: Segment) -> None:
    segment.text = segment.text_raw = ""
    segment.encoding = "utf-8"
    segment.txt_bytes = b""


def _only_tags(segment: Segment) -> None:
    segment.text, segment.text_raw, segment.encoding = "", "N/ b/ l/", "utf-8"


def _byte_order_mark(segment: Segment) -> None:
    segment.encoding = "utf-8-sig"


def _decomposed(segment: Segment) -> None:
    # 하 as the jamo ᄒ and ᅡ, as macOS writes it. The loader must return it composed.
    segment.text, segment.text_raw, segment.encoding = "하늘", "\u1112\u1161늘", "utf-8"


def _looks_like_utf8(segment: Segment) -> None:
    segment.text = segment.text_raw = "카"
    segment.encoding = "cp949"


def _two_lines(segment: Segment) -> None:
    segment.text_raw = f"b/ {segment.text}\n\n{segment.text}"
    segment.text = f"{segment.text} {segment.text}"


def _undecodable(segment: Segment) -> None:
    segment.txt_bytes = b"\xff\xfe\x00\xd8\xff"
    segment.rejected = "not text in utf-16"


def _missing_votes(segment: Segment) -> None:
    # Two raters did not answer; the label follows from the other eight.
    segment.cells[0] = segment.cells[1] = ""
    segment.ratings[0] = segment.ratings[1] = None
    update_total(segment)


def _unknown_vote(segment: Segment) -> None:
    segment.cells[2] = "bored"
    segment.ratings[2] = None
    segment.notes.append("unknown vote")
    update_total(segment)


def _odd_case(segment: Segment) -> None:
    segment.cells = [f" {name.upper()} " for name in segment.cells]


def _label_without_votes(segment: Segment) -> None:
    segment.cells = [""] * len(segment.cells)
    segment.ratings = [None] * len(segment.cells)
    segment.total, segment.label = "sad", "sad"
    segment.notes.append("no votes")


def _no_votes_no_label(segment: Segment) -> None:
    segment.cells = [""] * len(segment.cells)
    segment.total, segment.rejected = "", "no votes"


def _wrong_total(segment: Segment) -> None:
    votes = counted(segment.ratings)
    segment.total = CLASSES[votes.index(min(votes))]
    segment.notes.append("recount")


def _no_scale(segment: Segment) -> None:
    segment.scales, segment.valence, segment.arousal = ("", "NaN"), None, None


def _off_scale(segment: Segment) -> None:
    segment.scales, segment.valence, segment.arousal = ("0.4", "17"), None, None
    segment.notes += ["valence off the scale", "arousal off the scale"]


def update_total(segment: Segment) -> None:
    """Set the total to the leaders of the changed votes."""
    votes = counted(segment.ratings)
    segment.total = ";".join(
        name for name, vote in zip(CLASSES, votes, strict=True) if vote == max(votes)
    )


GLITCHES: tuple[Glitch, ...] = (
    _no_wav,
    _no_txt,
    _no_files,
    _empty_transcript,
    _only_tags,
    _byte_order_mark,
    _decomposed,
    _looks_like_utf8,
    _two_lines,
    _undecodable,
    _missing_votes,
    _unknown_vote,
    _odd_case,
    _label_without_votes,
    _no_votes_no_label,
    _wrong_total,
    _no_scale,
    _off_scale,
)


def apply_glitches(segments: Sequence[Segment], rng: random.Random) -> list[Segment]:
    """Apply each glitch to a different segment; return the unchanged segments."""
    chosen = rng.sample(range(len(segments)), len(GLITCHES))
    for glitch, index in zip(GLITCHES, chosen, strict=True):
        glitch(segments[index])
    return [segment for index, segment in enumerate(segments) if index not in chosen]


DUPLICATE = "duplicate row"
"""Part of the reason for which a second row of a segment is rejected."""


def duplicate(segment: Segment, **changes: object) -> Segment:
    """Another row for the same segment, to be rejected."""
    return replace(segment, rejected=DUPLICATE, wav=False, txt=False, notes=[], **changes)  # type: ignore[arg-type]


def total_cells(segment: Segment) -> list[str]:
    valence, arousal = segment.scales or (str(segment.valence), str(segment.arousal))
    return [segment.total, valence, arousal]


def rater_cells(segment: Segment) -> list[str]:
    return [cell for vote in segment.cells for cell in (vote, "3" if vote else "", "3")]


def write_clips(truth: Truth, segments: Sequence[Segment], samples: int) -> None:
    """Write recordings, transcripts, and the pickle files that the wav folders also contain."""
    for folder in sorted({segment.folder for segment in segments}):
        (truth.root / folder).mkdir(parents=True, exist_ok=True)
        (truth.root / folder / "features.pickle").write_bytes(pickle.dumps({}))
    for number, segment in enumerate(segments):
        segment.write_files(truth.root, number, samples)


def add_expected(truth: Truth, segments: Sequence[Segment]) -> None:
    """Add to the truth the records the loader must yield for these segments of one session."""
    dialogues: dict[str, list[Segment]] = {}
    for segment in segments:
        if segment.rejected and not segment.wav and segment.rejected == DUPLICATE:
            truth.rejected.append((segment.source, segment.rejected))
            continue
        dialogues.setdefault(segment.dialogue, []).append(segment)
    for name in sorted(dialogues):
        for turn, segment in enumerate(sorted(dialogues[name], key=lambda item: item.start)):
            if segment.rejected:
                truth.rejected.append((segment.source, segment.rejected))
                continue
            truth.notes += [(segment.source, kind) for kind in segment.notes]
            truth.utterances.append(segment.expected(truth.root, turn))
