"""The `report` section of the job file: what the page shows of the recordings themselves."""

from __future__ import annotations

from pydantic import Field

from multistill.config.base import Section


class ReportConfig(Section):
    """Transcripts and recordings of single clips in the report.

    Neither changes a result; the report is written again where they change. Licences of corpora
    often forbid to pass recordings on, so audio is off unless a job asks for it.
    """

    transcripts: bool = Field(
        True, description="show the transcripts of the listed clips in page and report.json"
    )
    audio: bool = Field(
        False,
        description="put the listed clips into the page, to be played: whoever gets the page gets "
        "the recordings",
    )
    audio_mb: float = Field(
        8.0,
        gt=0,
        le=200,
        description="`audio: true`: limit of all clips of a page together, in MB",
    )
