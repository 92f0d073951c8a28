"""From a clip of a request to an answer, through a `Predictor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from multistill.audio.errors import UnusableClipError
from multistill.audio.reading import opened, read_header
from multistill.errors import UsageError
from multistill.inference.clip import Input
from multistill.inference.predictor import Predictor
from multistill.serving.refusals import Refusal, of_clip
from multistill.typing import FloatArray

Answer: TypeAlias = dict[str, Any] | Refusal
"""The fields of a `Prediction`, or why there is none."""


@dataclass(frozen=True)
class Clip:
    """A clip of a request.

    Attributes:
        audio: the content of a file; samples at 16 kHz, [n], of a stream; None: no recording.
        text, only, unsure_below: as of `Predictor.predict`.
    """

    audio: bytes | FloatArray | None = None
    text: str | None = None
    only: tuple[str, ...] | None = None
    unsure_below: float | None = None


def answer(predictor: Predictor, clips: Sequence[Clip], max_seconds: float) -> list[Answer]:
    """Predict clips; those with the same options share batches of the head.

    Args:
        max_seconds: of a recording; a longer one is refused before it is decoded.
    """
    answers: dict[int, Answer] = {}
    groups: dict[tuple[tuple[str, ...] | None, float | None], list[int]] = {}
    for number, clip in enumerate(clips):
        try:
            predictor.check(clip.only, clip.unsure_below)
        except UsageError as error:
            answers[number] = Refusal(422, "invalid options", str(error))
            continue
        if isinstance(clip.audio, bytes) and (refusal := _too_long(clip.audio, max_seconds)):
            answers[number] = refusal
            continue
        groups.setdefault((clip.only, clip.unsure_below), []).append(number)
    for (only, unsure_below), numbers in groups.items():
        inputs = [_input(clips[number]) for number in numbers]
        found = predictor.try_batch(inputs, only=only, unsure_below=unsure_below)
        for number, each in zip(numbers, found, strict=True):
            answers[number] = of_clip(each) if isinstance(each, UnusableClipError) else asdict(each)
    return [answers[number] for number in range(len(clips))]


def _input(clip: Clip) -> Input:
    if clip.audio is None or isinstance(clip.audio, bytes):
        return Input(clip.audio, clip.text)
    return Input((clip.audio, 16_000), clip.text)


def _too_long(audio: bytes, max_seconds: float) -> Refusal | None:
    try:
        with opened(audio) as handle:
            header = read_header(handle)
    except UnusableClipError:  # told when the clip is decoded
        return None
    seconds = header.frames / header.rate
    if seconds <= max_seconds:
        return None
    return Refusal(
        413,
        "too long",
        f"the recording has {seconds:.0f} s, and this server reads {max_seconds:g} s; "
        "send a part of it",
    )
