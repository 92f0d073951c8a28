"""Models that need transcripts, on corpora that have none."""

from __future__ import annotations

from collections.abc import Iterable

from multistill.config import ModelConfig
from multistill.errors import UsageError
from multistill.models.presets import resolve
from multistill.workspace import Artifact

QUERIES = "mesm"
"""The network whose text chooses what is computed of the speech."""


def refuse_without_text(models: Iterable[ModelConfig], manifest: Artifact) -> None:
    """Refuse MESM on corpora without a single transcript: nothing would choose its points.

    Args:
        models: all that the job trains.

    Raises:
        UsageError: there is no transcript.
    """
    from multistill.corpora.manifest import read_manifest

    presets = [
        model.preset
        for model in models
        if resolve(model.preset, model.overrides()).network == QUERIES
    ]
    if not presets:
        return
    texts = read_manifest(manifest.path, ["text"])["text"].to_pylist()
    if not any(text.strip() for text in texts):
        dense = presets[0].replace("mesm", "fe2e")
        raise UsageError(
            f"in the preset `{presets[0]}`, the text chooses which points of the speech are "
            f"computed, and no utterance of the corpora has one; use `{dense}`, which computes "
            "all, or corpora with transcripts"
        )
