"""The class set of a job: names, order, merges, and what becomes of other labels."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from multistill.config.base import Section
from multistill.config.emotions import SYNONYMS, emotion_of

CLASSES = ("neutral", "happy", "surprise", "angry", "sad", "disgust", "fear")
"""The classes of Multi-Still, in the published order: the default of a job."""
MAX_CLASSES = 50
_LONGEST = 40
_RESERVED = {"tie", "none"}  # rows without a label have these names in counts


def _class_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name).strip()
    if not name or len(name) > _LONGEST:
        raise ValueError(f"a class has a name of 1 to {_LONGEST} characters, not `{name}`")
    if ";" in name or any(unicodedata.category(character) in {"Cc", "Cf"} for character in name):
        raise ValueError(
            f"the class name {name!r} has a semicolon, which separates the classes of a tie, or a "
            "character that shows nothing; choose another name"
        )
    if name.casefold() in _RESERVED:
        raise ValueError(
            f"a class cannot be called `{name}`: tables use it for clips without a label"
        )
    return name


ClassName = Annotated[str, AfterValidator(_class_name)]


class LabelsConfig(Section):
    """The classes, in the order of votes, soft targets, logits and tables.

    Labels are compared by the emotion that they stand for: `Freude`, `happiness` and `joy` are
    `happy` (`multistill labels` prints the table).
    """

    classes: list[ClassName] = Field(
        default_factory=lambda: list(CLASSES),
        min_length=2,
        max_length=MAX_CLASSES,
        description="names in order; default: the seven of Multi-Still",
    )
    merge: dict[ClassName, list[str]] = Field(
        default_factory=dict,
        description="class -> emotions that count as it, e.g. {happy: [happy, excited]}",
    )
    leave_out: list[str] = Field(
        default_factory=list,
        description="emotions whose clips and votes are left out, e.g. [boredom]",
    )
    others: ClassName | None = Field(
        None,
        description="class of every label that is no emotion of the job; default: such clips are "
        "rejected and counted",
    )
    synonyms: dict[str, list[str]] = Field(
        default_factory=dict, description="emotion -> further spellings, e.g. {happy: [amused]}"
    )

    @model_validator(mode="after")
    def _check(self) -> LabelsConfig:
        for field, names in (("merge", list(self.merge)), ("others", [self.others])):
            for name in names:
                if name is not None and name not in self.classes:
                    raise ValueError(
                        f"{field}: `{name}` is not a class; use one of {', '.join(self.classes)}"
                    )
        owners: dict[str, str] = {}
        for name, owner in self._spelled():
            other = owners.setdefault(self.emotion_of(name), owner)
            if other != owner:
                raise ValueError(
                    f"`{name}` is given to {other} and to {owner} (they are spellings of one "
                    "emotion, or it stands twice); keep one of them"
                )
        for name in self.classes:
            if self.classes.count(name) > 1:
                raise ValueError(f"classes: `{name}` stands there twice; remove one")
        return self

    def _spelled(self) -> Iterator[tuple[str, str]]:
        """Names in the section, and what each belongs to: the class, or `leave_out`."""
        for name in self.classes:
            yield name, f"class `{name}`"
        for owner, names in self.merge.items():
            yield from ((name, f"class `{owner}`") for name in names)
        yield from ((name, "`leave_out`") for name in self.leave_out)

    def names(self) -> dict[str, str]:
        """Names of the classes, and of the emotions merged into them, as written -> class."""
        merged = {name: owner for owner, names in self.merge.items() for name in names}
        return {**{name: name for name in self.classes}, **merged}

    def emotion_of(self, name: str) -> str:
        """The emotion that a name stands for, with the job's own synonyms."""
        return emotion_of(name, self.synonyms)

    def class_by_emotion(self) -> dict[str, str | None]:
        """Emotion -> its class, None for those that are left out."""
        found: dict[str, str | None] = {self.emotion_of(name): name for name in self.classes}
        for owner, names in self.merge.items():
            found |= {self.emotion_of(name): owner for name in names}
        return found | {self.emotion_of(name): None for name in self.leave_out}

    def table(self) -> list[dict[str, Any]]:
        """Every known emotion, its spellings, and what becomes of it, classes of the job first.

        Returns:
            rows of `emotion`, `class` (None: left out or rejected) and `spellings`.
        """
        own: dict[str, list[str]] = {}
        for emotion, spellings in self.synonyms.items():
            own.setdefault(emotion_of(emotion), []).extend(spellings)
        found = self.class_by_emotion()
        return [
            {
                "emotion": emotion,
                "class": found.get(emotion, self.others),
                "spellings": [*own.get(emotion, ()), *SYNONYMS.get(emotion, ())],
            }
            for emotion in dict.fromkeys((*found, *own, *SYNONYMS))
        ]
