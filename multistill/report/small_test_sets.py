"""Warnings of a test set too small: few groups or speakers, and classes with few clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from multistill.wording import counted

MIN_SPEAKERS = 6
"""Below it, whether a model is good for people in general is mostly luck."""
MIN_CLIPS_OF_A_CLASS = 10


def small_test_set(
    test: Mapping[str, Any], clips: Mapping[str, int], crossed: bool = False
) -> Iterator[tuple[str, str, str]]:
    """Kind, title and text of each.

    Args:
        test: of metrics.json.
        clips: number of labelled test clips by class.
        crossed: all clips are tested (cross-validation), so that only more of them help.
    """
    yield from _few_groups(test, crossed)
    rare = test["rare_classes"]
    if rare:
        named = ", ".join(f"{row['class']} ({row['clips']})" for row in rare)
        yield (
            "rare-classes",
            "CLASSES TOO RARE",
            f"Too few test clips, or in one {test['resampled']['unit']} only: {named}. UAR and "
            "macro F1 average over all classes, so they have no interval here and there is no "
            "verdict; accuracy and weighted F1 have one. "
            + (
                "Add clips of them, or map their labels to other classes (`labels` of the corpus)."
                if crossed
                else "Raise `split.test`, or map these labels to other classes (`labels` of the "
                "corpus)."
            ),
        )
    named_already = {row["class"] for row in rare}
    few = {
        name: count
        for name, count in clips.items()
        if 0 < count < MIN_CLIPS_OF_A_CLASS and name not in named_already
    }
    if few:
        named = ", ".join(f"{name} ({count})" for name, count in few.items())
        largest, present = 100 / min(few.values()), sum(count > 0 for count in clips.values())
        yield (
            "few-clips",
            "CLASSES WITH FEW TEST CLIPS",
            f"Fewer than {MIN_CLIPS_OF_A_CLASS} test clips: {named}. One clip decided otherwise "
            f"moves the recall of such a class by up to {largest:.0f} points, and UAR by up to "
            f"{largest / present:.1f}. "
            + (
                "Add clips, or merge classes (`labels.merge`)."
                if crossed
                else "Raise `split.test`, test every clip (`protocol`), or merge classes "
                "(`labels.merge`)."
            ),
        )


def _few_groups(test: Mapping[str, Any], crossed: bool) -> Iterator[tuple[str, str, str]]:
    """At most one: of one group, of few speakers, or of few groups that are resampled."""
    resampled, speakers = test["resampled"], test["speakers"]
    count, unit = resampled["count"], resampled["unit"]
    if resampled["one_group"]:
        whole, parts = resampled["kept_together"], "clip" if unit == "utterance" else unit
        voices = f" with {counted(speakers, 'speaker')}" if 1 < speakers < MIN_SPEAKERS else ""
        yield (
            "one-group",
            "ONE TEST GROUP",
            f"The test clips are of one {whole}{voices}, so intervals are over its "
            f"{counted(count, parts)} and hold for this {whole} only: how much others would differ "
            "cannot be told.",
        )
    elif speakers < MIN_SPEAKERS:
        where = "" if unit == "speaker" else f" in {counted(count, unit)}"
        consequence = (
            f"The intervals are over the {unit}s of these speakers, so they do not hold for others"
            if count > speakers
            else "The intervals are widened for so few, and how much others would differ can only "
            "be guessed from them"
        )
        yield (
            "few-speakers",
            counted(speakers, "test speaker").upper(),
            f"The test set has {counted(speakers, 'speaker')}{where}. "
            f"{consequence}: tested on other people, the models could rank in another order. "
            + (
                "Add speakers."
                if crossed
                else "Raise `split.test`, test every speaker (`protocol`), or add speakers."
            ),
        )
    elif resampled["few"]:
        yield (
            "few-groups",
            f"FEW TEST {unit.upper()}S",
            f"The test set has {counted(count, unit)}. The intervals are widened for so few, and "
            "how much other speakers would differ can only be guessed from them.",
        )
