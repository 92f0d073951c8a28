"""A commented job file to start from, for the corpora that were found."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from multistill.config import CLASSES, DIMENSIONS, LabelsConfig
from multistill.config.emotions import SYNONYMS, emotion_of
from multistill.corpora.detect import FEWEST_GROUPS

if TYPE_CHECKING:
    from multistill.corpora.detect import FoundCorpus

_FEW_GROUPS = 8  # below, a holdout tests one or two of them
_NAME_LENGTH = 60
_MOST_LABELS = 30


def job_name(path: Path | None) -> str:
    """A job's name from a corpus's path: letters, digits, dots and dashes."""
    name = "demo" if path is None else path.stem if path.is_file() else path.resolve().name
    name = re.sub(r"[^\w.]+", "-", unicodedata.normalize("NFC", name)).strip("-.")
    return name[:_NAME_LENGTH] or "job"


def job_text(name: str, corpora: Sequence[FoundCorpus], file: Path) -> str:
    """The text of a job file.

    Args:
        corpora: those found; none means the packaged demo corpus.
        file: where it will be written, for the commands in its head.
    """
    return "\n".join(_lines(name, corpora, _comment(shlex.quote(str(file))))) + "\n"


def _lines(name: str, corpora: Sequence[FoundCorpus], file: str) -> Iterator[str]:
    split = "speaker" if any(corpus.split == "speaker" for corpus in corpora) else "session"
    yield f"# {name}: written by `multistill init`. Every key but `name` and `corpora` may go."
    yield f"#   multistill validate {file} --data   # reads the corpus, trains nothing"
    yield f"#   multistill run {file}"
    yield "# yaml-language-server: $schema=job.schema.json"
    yield from _dumped({"name": name})
    yield "workspace: workspace          # all results; on a cluster, a folder that every node sees"
    yield ""
    yield "corpora:"
    for corpus in corpora:
        yield from _corpus(corpus)
    if not corpora:
        yield "  - kind: demo                # packaged and synthetic; `--corpus PATH` takes yours"
    yield ""
    yield from _tasks(corpora)
    yield from _labels(corpora)
    yield from _split(split, [corpus.groups for corpus in corpora])
    yield ""
    yield "features:                     # computed once, and found again by later jobs"
    yield "  speech: log-mel             # no download; better: the name or folder of a wav2vec2,"
    yield "                              # HuBERT, WavLM or data2vec-audio model"
    has_text = not corpora or any(corpus.has_text for corpus in corpora)
    if has_text:
        yield "  text: hashed-ngrams         # no download; better: a BERT or ELECTRA model, or"
        yield f"{'':<30}# use-multilingual (`multistill weights get` fetches it)"
    yield ""
    teacher = "small-teacher" if has_text else "small-audio-teacher"
    yield f"teacher: {teacher:<21}# `multistill models` lists the presets"
    yield ""
    yield "students:                     # each is trained with the teacher, and alone as control"
    students = {"audio": "small-audio-student"}
    if has_text:
        students = {"multimodal": "small-student", "text": "small-text-student", **students}
    for student, preset in students.items():
        yield f"  - {{name: {student}, model: {preset}}}"
    yield ""
    yield "# search:                     # hyperparameters of the first student, on validation"
    yield "#   trials: 16"


def _corpus(corpus: FoundCorpus) -> Iterator[str]:
    yield from _item(corpus.settings)
    for sentence in corpus.missing:
        yield f"    # TO DO: {_comment(sentence)}"


def _tasks(corpora: Sequence[FoundCorpus]) -> Iterator[str]:
    """The section `tasks`, for tables that have dimensions and no labels."""
    if any(corpus.has_classes for corpus in corpora) or not corpora:
        return
    shared = [name for name in DIMENSIONS if all(name in corpus.dimensions for corpus in corpora)]
    if not shared:
        return
    yield f"tasks: [{', '.join(shared)}]  # there are no labels: dimensions alone"
    yield ""


def _split(by: str, counts: Sequence[int | None]) -> Iterator[str]:
    """A holdout; of few groups, each tested once instead."""
    known = [count for count in counts if count is not None]
    total = sum(known) if known and len(known) == len(counts) else None
    if total is None or total < FEWEST_GROUPS or total >= _FEW_GROUPS:
        yield "split:"
        yield f"  by: {by:<24}# the {by}s of the test set are not in training"
        yield "  test: 0.2                   # shares of them"
        yield "  valid: 0.15"
        return
    yield f"protocol:                     # {total} {by}s are few: each is tested once,"
    yield "  kind: leave-one-out         # by models of the others, trained anew for each of them"
    yield f"  by: {by}"
    yield ""
    yield "split:"
    yield f"  valid: 0.15                 # share of the {by}s that choose the epoch, at least one"
    if total == FEWEST_GROUPS:
        yield ""
        yield "distillation:"
        yield f"  targets: in-sample          # out-of-fold needs two {by}s to train on"


def _labels(corpora: Sequence[FoundCorpus]) -> Iterator[str]:
    """The section `labels`, if a table has labels that are none of the default classes."""
    counts: Counter[str] = Counter()
    for corpus in corpora:
        for label, number in corpus.labels:
            emotion = emotion_of(label)
            counts[emotion if emotion in SYNONYMS else label] += number
    found = [name for name, _ in counts.most_common()]
    classes = [*(name for name in CLASSES if name in counts)]
    classes += [name for name in found if name not in classes]
    if set(classes) <= set(CLASSES):
        return
    yield "labels:                       # `multistill labels` prints the spellings it recognises"
    try:
        LabelsConfig(classes=classes)
    except ValueError:
        yield "  # TO DO: name the classes, 2 to 50; the table has"
        for name in found[:_MOST_LABELS]:
            yield f"  #   {_comment(name)} ({counts[name]} rows)"
        yield "  classes: [neutral, happy, surprise, angry, sad, disgust, fear]"
    else:
        yield "  classes:                    # in the order of all tables; `merge` and `leave_out`"
        yield "                              # are described in docs/corpora.md"
        for name in classes:
            yield f"    {_dumped([name])[0]:<26}# {counts[name]} rows"
    yield ""


def _item(settings: dict[str, Any]) -> Iterator[str]:
    """The settings as an item of a list, two levels deep."""
    for number, line in enumerate(_dumped(settings)):
        yield f"  {'- ' if number == 0 else '  '}{line}"


def _comment(text: str) -> str:
    """A text as one line that may stand in a comment."""
    return "".join(c if c.isprintable() else " " for c in text)


def _dumped(values: Any) -> list[str]:
    """YAML lines of a mapping or a list, quoted where YAML needs it."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10_000)
    return text.splitlines()
