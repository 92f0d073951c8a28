"""`multistill stream`: what a trained model says about speech while it is spoken."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multistill.cli.options import (
    Device,
    JobWorkspace,
    Json,
    Model,
    Only,
    Temperature,
    UnsureBelow,
)
from multistill.cli.streams import prints_unicode
from multistill.errors import MultistillError
from multistill.inference.stream_settings import SegmentSettings, StreamSettings
from multistill.wording import counted

if TYPE_CHECKING:
    from multistill.inference.predictor import Prediction
    from multistill.inference.streaming import Event

SHOWN_CLASSES = 3


def _seconds(flag: str, description: str) -> Any:
    return typer.Option(flag, metavar="SECONDS", help=description)


def stream(
    model: Model,
    audio: Annotated[
        str | None,
        typer.Option(
            "--audio",
            metavar="FILE",
            help="a recording of any length; -: raw samples (16 bits, little-endian, one channel) "
            "from standard input",
        ),
    ] = None,
    microphone: Annotated[
        bool, typer.Option("--microphone", help="listen to the default microphone until Ctrl-C")
    ] = False,
    rate: Annotated[
        int | None,
        typer.Option(
            "--rate", metavar="HZ", help="of raw samples and of the microphone; default: 16000"
        ),
    ] = None,
    final_only: Annotated[
        bool, typer.Option("--final-only", help="only the prediction of each whole segment")
    ] = False,
    interval: Annotated[
        float, _seconds("--interval", "time between two interim predictions")
    ] = 0.25,
    window: Annotated[
        float, _seconds("--window", "what an interim prediction hears")
    ] = StreamSettings.window,
    half_life: Annotated[
        float, _seconds("--half-life", "time until a prediction counts half in `smoothed`")
    ] = StreamSettings.half_life,
    threshold: Annotated[
        float, typer.Option("--threshold", metavar="P", help="probability that makes sound speech")
    ] = SegmentSettings.threshold,
    min_speech: Annotated[
        float, _seconds("--min-speech", "of the shortest segment")
    ] = SegmentSettings.min_speech,
    min_silence: Annotated[
        float, _seconds("--min-silence", "of the silence that ends a segment")
    ] = SegmentSettings.min_silence,
    min_pause: Annotated[
        float,
        _seconds("--min-pause", "of the silence after which a segment is predicted provisionally"),
    ] = 0.1,
    padding: Annotated[
        float, _seconds("--padding", "kept before and after speech")
    ] = SegmentSettings.padding,
    max_segment: Annotated[
        float, _seconds("--max-segment", "after which a segment is cut")
    ] = SegmentSettings.max_segment,
    only: Only = None,
    unsure_below: UnsureBelow = None,
    temperature: Temperature = None,
    device: Device = None,
    workspace: JobWorkspace = Path("workspace"),
    as_json: Json = False,
) -> None:
    """Predict the emotion of speech as it comes: a long recording, a pipe, a microphone."""
    from multistill.inference.predictor import Predictor
    from multistill.inference.stream_sources import Source
    from multistill.inference.streaming import Final, StreamingPredictor
    from multistill.inference.voice_activity import require_silero

    segments = SegmentSettings(
        threshold,
        min_speech,
        min_silence,
        padding,
        max_segment,
        None if final_only else min_pause,
    )
    settings = StreamSettings(segments, None if final_only else interval, window, half_life)
    source = Source(audio, microphone, rate)
    require_silero()
    predictor = Predictor.load(model, device, workspace=workspace, temperature=temperature)
    streaming = StreamingPredictor(
        predictor, settings, rate=source.rate, only=only, unsure_below=unsure_below
    )
    finals = 0
    with _stop_at_interrupt() as stopped, _output(as_json) as (write, say):

        def tell(events: list[Event]) -> None:
            nonlocal finals
            for event in events:
                if isinstance(event, Final):
                    finals += 1
                if isinstance(event, Final) or not final_only:
                    write(event)

        for note in streaming.notes:
            say(note)
        try:
            for piece in source.pieces(stopped, say):
                tell(streaming.push(piece.samples, waiting=piece.waiting))
        except MultistillError:
            tell(streaming.finish())
            raise
        tell(streaming.finish())
        if not finals:
            say(f"nobody spoke for {min_speech:g} s in {streaming.position:.1f} s of sound")
        if streaming.skipped:
            skipped = counted(streaming.skipped, "prediction")
            say(f"{skipped} of unended segments left out: the model is slower than sound arrives")


@contextmanager
def _stop_at_interrupt() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: the last final prediction is made before the command ends."""
    pressed = False

    def press(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _output(as_json: bool) -> Iterator[tuple[Callable[[Event], None], Callable[[str], None]]]:
    """Functions that write an event and say a sentence.

    Events are JSON lines, or on a terminal a line for each segment and a live one below.
    """
    from multistill.inference.rows import to_json_line
    from multistill.inference.streaming import Final, Interim, Provisional
    from multistill.tracking.console import ProgressDisplay

    display = ProgressDisplay()

    def write_json(event: Event) -> None:
        sys.stdout.write(to_json_line(event.to_json(), ascii_only=not prints_unicode()))
        sys.stdout.flush()

    def show(event: Event) -> None:
        if isinstance(event, Final):
            display.clear()
            print(f"{event.start:9.2f} - {event.end:.2f} s  {_summary(event.prediction)}")
        elif isinstance(event, Interim | Provisional):
            display.update(f"{event.end:.2f} s  {_summary(event.prediction)}")

    try:
        yield (
            write_json if as_json or not sys.stdout.isatty() else show,
            lambda text: display.print(f"multistill: {text}"),
        )
    finally:
        display.clear()


def _summary(prediction: Prediction) -> str:
    """The most probable classes, and dimensions."""
    ranked = sorted(prediction.distribution.items(), key=lambda item: -item[1])
    parts = [f"{name} {share:.2f}" for name, share in ranked[:SHOWN_CLASSES]]
    parts += [f"{name} {value:.2f}" for name, value in prediction.dimensions.items()]
    unsure = bool(prediction.distribution) and prediction.label is None
    return f"{'unsure: ' if unsure else ''}{', '.join(parts)}"
