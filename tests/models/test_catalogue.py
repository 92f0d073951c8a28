"""Parameter counts of the presets, and the table that lists them."""

from __future__ import annotations

import pytest
import torch

from multistill.models.build import build, count_parameters
from multistill.models.catalogue import catalogue
from multistill.models.presets import PRESETS

PUBLISHED = {
    "paper-teacher": 44_107_271,
    "paper-text-teacher": 22_448_903,
    "paper-audio-teacher": 22_448_903,
    "paper-student": 15_755_783,
    "paper-text-student": 8_273_159,
    "paper-audio-student": 8_273_159,
    "text-teacher": 21_662_471,
    "text-student": 7_486_727,
    "paper-va-audio": 27_748_865,
    "paper-va-text": 19_869_505,
    "paper-va-fusion": 28_929_669,
}


def _dims(preset: str) -> tuple[int, int]:
    """128 log-mel bands beside KoBERT, or wav2vec2-large beside KoELECTRA."""
    return (128 if "-va-" in preset else 1024), 768


@pytest.mark.parametrize(("preset", "count"), PUBLISHED.items())
def test_presets_have_the_published_number_of_parameters(preset: str, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(build(PRESETS[preset], *_dims(preset))) == count


def test_the_catalogue_lists_every_preset_with_its_parameters() -> None:
    rows = {row["preset"]: row for row in catalogue()}
    assert list(rows) == list(PRESETS)
    assert {name: rows[name]["params_trainable"] for name in PUBLISHED} == PUBLISHED
    with_note = {name for name, row in rows.items() if row["note"]}
    assert with_note == {"paper-text-teacher", "paper-text-student"}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_text_heads_tell_the_projection_that_they_never_use(preset: str) -> None:
    with torch.device("meta"):
        unused = build(PRESETS[preset], *_dims(preset)).unused_parameters()
    assert unused == (1024 * 768 if preset.startswith("paper-text") else 0)
