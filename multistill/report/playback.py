"""Recordings as data URIs, small enough to be part of a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import soundfile

from multistill.audio import SAMPLE_RATE
from multistill.audio.errors import UnusableClipError
from multistill.audio.reading import read_sound
from multistill.corpora.manifest import MANIFEST
from multistill.damaged import read_table

MAX_SECONDS = 30.0
"""Of one clip; what is longer is cut."""
FORMAT, SUBTYPE, MIME = "MP3", "MPEG_LAYER_III", "audio/mpeg"
"""Every browser plays it, and it takes about 4 kB a second at 16 kHz mono."""
MB = 1_000_000


@dataclass(frozen=True)
class Playback:
    """Clips that a page can play.

    Attributes:
        sources: data URI by utterance id.
        failed: why a clip cannot be played, by utterance id.
        over_limit: ids of clips beyond the limit in MB.
    """

    sources: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    over_limit: list[str] = field(default_factory=list)


def read_clips(manifest: Path, ids: Iterable[str], limit_mb: float) -> Playback:
    """Encode clips as MP3 (mono, 16 kHz), in their order, as long as `limit_mb` holds them.

    A clip whose file cannot be read on this machine is left out with the reason.
    """
    wanted = list(dict.fromkeys(ids))
    columns, chosen = ["utterance_id", "audio_path"], [("utterance_id", "in", wanted)]
    table = read_table(manifest / MANIFEST, columns=columns, filters=chosen)
    paths = {row["utterance_id"]: row["audio_path"] for row in table.to_pylist()}
    playback, size = Playback(), 0
    for name in wanted:
        try:
            sound = read_sound(paths[name], max_seconds=MAX_SECONDS)
            buffer = io.BytesIO()
            soundfile.write(buffer, sound.samples, SAMPLE_RATE, format=FORMAT, subtype=SUBTYPE)
        except (UnusableClipError, soundfile.SoundFileError) as error:
            playback.failed[name] = str(error)
            continue
        source = f"data:{MIME};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
        if size + len(source) > limit_mb * MB:
            playback.over_limit.append(name)
            continue
        size += len(source)
        playback.sources[name] = source
    return playback
