"""`multistill predict`: what a trained model says about recordings and transcripts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multistill.cli.options import (
    Device,
    JobWorkspace,
    Json,
    Model,
    Only,
    Temperature,
    UnsureBelow,
    print_json,
)
from multistill.cli.streams import prints_unicode
from multistill.errors import MultistillError, UsageError
from multistill.wording import counted

if TYPE_CHECKING:
    from multistill.inference.find_clips import NamedClip
    from multistill.inference.predictor import Prediction, Predictor
    from multistill.inference.rows import Row

CLIPS_PER_BATCH = 32
MANY = 5000
"""Clips from which they are encoded on Ray."""
BAR = 30
"""Width of the longest bar, in characters."""


def predict(
    model: Model,
    audio: Annotated[
        list[str] | None,
        typer.Option(
            "--audio",
            metavar="PATH",
            help="a recording, a folder, a pattern such as 'data/**/*.wav', or a CSV or Parquet "
            "table with the columns audio, text and id; repeat it for several",
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="transcript of the only recording, or alone")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="write .jsonl, .csv or .parquet in place of printing"
        ),
    ] = None,
    only: Only = None,
    unsure_below: UnsureBelow = None,
    temperature: Temperature = None,
    device: Device = None,
    workspace: JobWorkspace = Path("workspace"),
    ray: Annotated[
        bool | None,
        typer.Option(
            "--ray/--no-ray",
            help="encode on Ray, in shards beside --out that the same command continues after a "
            f"kill; default: from {MANY:,} clips",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the emotion of recordings and transcripts with a trained model."""
    from multistill.inference.find_clips import TABLES, find_clips
    from multistill.inference.predictor import Predictor

    clips = find_clips(audio or [], text)
    predictor = Predictor.load(model, device, workspace=workspace, temperature=temperature)
    predictor.check(only, unsure_below)
    alone = len(clips) == 1 and Path((audio or [""])[0]).suffix.lower() not in TABLES
    if alone and out is None:
        prediction = predictor.predict(
            clips[0].input.audio, clips[0].input.text, only=only, unsure_below=unsure_below
        )
        if as_json:
            from multistill.inference.rows import row_of

            print_json(row_of(clips[0].id, prediction))
        else:
            _show(clips[0].id, prediction)
        return
    labels = [label for label in predictor.labels if only is None or label in only]
    failed = 0
    with _destination(out, labels, predictor.dimensions) as write:
        for rows in _rows(
            predictor, clips, only, unsure_below, _shards(ray, clips, predictor, out)
        ):
            failed += sum("error" in row for row in rows)
            write(rows)
    if failed:
        raise MultistillError(
            f"{failed} of {len(clips)} clips could not be predicted; see `error` of their rows"
            + (f" in {out}" if out else "")
        )
    if out is not None and not as_json:
        print(f"{out}: {counted(len(clips), 'prediction')}")


def _rows(
    predictor: Predictor,
    clips: Sequence[NamedClip],
    only: Sequence[str] | None,
    unsure_below: float | None,
    shards: Path | None,
) -> Iterator[list[Row]]:
    """Rows of some clips at a time, with progress on standard error.

    Args:
        shards: folder of what is encoded on Ray; None: no Ray.
    """
    from multistill.inference.rows import row_of
    from multistill.tracking.console import ConsoleLogger, ProgressDisplay

    display = ProgressDisplay()
    logger = ConsoleLogger(display, "predict")
    try:
        if shards is not None:
            from multistill.inference.at_scale import predict_at_scale

            for results in predict_at_scale(predictor, clips, shards, only, unsure_below, logger):
                yield [row_of(*result) for result in results]
            return
        for start in range(0, len(clips), CLIPS_PER_BATCH):
            batch = clips[start : start + CLIPS_PER_BATCH]
            inputs = [clip.input for clip in batch if clip.error is None]
            answers = iter(predictor.try_batch(inputs, only=only, unsure_below=unsure_below))
            rows = []
            for clip in batch:
                answer = next(answers) if clip.error is None else clip.error
                rows.append(
                    row_of(clip.id, str(answer) if isinstance(answer, Exception) else answer)
                )
            yield rows
            logger.progress(start + len(batch), len(clips), "clips")
    finally:
        display.clear()


def _shards(
    ray: bool | None, clips: Sequence[NamedClip], predictor: Predictor, out: Path | None
) -> Path | None:
    """Where what is encoded on Ray is kept until the result is there; None: no Ray."""
    from multistill.inference.at_scale import why_not

    if ray is None:
        ray = len(clips) >= MANY and out is not None and why_not(predictor) is None
    if not ray:
        return None
    if out is None:
        raise UsageError("--ray keeps its shards beside the result; name a file with --out")
    return out.parent / f".{out.name}.shards"


@contextmanager
def _destination(
    out: Path | None, labels: Sequence[str], dimensions: Sequence[str]
) -> Iterator[Callable[[Sequence[Row]], None]]:
    """A function that writes rows to a file, or as JSON lines to standard output."""
    from multistill.inference.rows import to_json_line, writer

    if out is not None:
        with writer(out, labels, dimensions) as write:
            yield write
        return

    def print_rows(rows: Sequence[Row]) -> None:
        for row in rows:
            sys.stdout.write(to_json_line(row, ascii_only=not prints_unicode()))
        sys.stdout.flush()

    yield print_rows


def _show(name: str, prediction: Prediction) -> None:
    """A prediction for people: the label, a bar per class, and what else is known."""
    width = max(map(len, [*prediction.distribution, *prediction.dimensions]), default=0)
    print(f"{name}: {prediction.label or 'unsure'}" if prediction.distribution else name)
    block = "█" if prints_unicode() else "#"
    for label, share in sorted(prediction.distribution.items(), key=lambda item: -item[1]):
        print(f"  {label:{width}}  {share:.3f}  {block * round(BAR * share)}".rstrip())
    for dimension, value in prediction.dimensions.items():
        print(f"  {dimension:{width}}  {value:.2f} of 1 to 5")
    if prediction.missing:
        print(f"without {' and '.join(prediction.missing)}, which the model reads too")
    for note in prediction.notes:
        print(note)
    stages = {k: v for k, v in prediction.milliseconds.items() if k != "total"}
    parts = ", ".join(f"{stage} {value:.1f}" for stage, value in stages.items())
    print(f"{prediction.milliseconds['total']:.1f} ms ({parts}), model {prediction.model}")
