"""Corpus loaders and their registry.

To add a corpus:

1. Write a module here with a function `load(config, root, labels)` that yields
   records (`multistill.corpora.records`) in a fixed order: an `Utterance` per clip, `Rejected`
   for each clip or row it leaves out, `Note` for anything odd. It reads annotations and file
   names only: audio headers, splits and the quality report follow from the records. `emodb` is
   the shortest example; `paths`, `labels` and `text` in `multistill.corpora` help.
2. Add the kind to `LOADERS` below and to `CorpusKind` in `multistill/config/data.py`.
3. Describe the layout in `docs/corpora.md`.

A corpus that can be written as one table needs no loader: use the kind `table`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from multistill.config import CorpusConfig, CorpusKind, LabelsConfig, TasksConfig
from multistill.corpora.labels import LabelReader
from multistill.corpora.paths import describe_folder
from multistill.corpora.records import Record, Utterance
from multistill.errors import MultistillError, UsageError


class Loader(Protocol):
    """Reads one corpus in a fixed order; UsageError if `root` does not hold that corpus.

    `labels` says which class a label is, and the order of votes.
    """

    def __call__(
        self, config: CorpusConfig, root: Path, labels: LabelReader
    ) -> Iterator[Record]: ...


LOADERS: dict[CorpusKind, str] = {
    "demo": "demo:load",
    "emodb": "emodb:load",
    "kemdy19": "kemdy19:load",
    "kemdy20": "kemdy20:load",
    "aihub-dialogue": "aihub:load_dialogue",
    "aihub-scripted": "aihub:load_scripted",
    "aihub-wellness": "aihub:load_wellness",
    "table": "table:load",
}
"""Kind -> `module:function`, imported when a job uses the kind."""


def import_loader(kind: CorpusKind) -> Loader:
    """The function that reads corpora of a kind."""
    module, function = LOADERS[kind].split(":")
    return cast(Loader, getattr(import_module(f"{__name__}.{module}"), function))


def corpus_root(config: CorpusConfig) -> Path:
    """The corpus's folder (for `table`, the table file) as an absolute path.

    Raises:
        UsageError: if it does not exist; names what was looked for and what is there instead.
    """
    if config.path is None:
        raise UsageError(f"the {config.kind} corpus is packaged: it has no folder of its own")
    path = Path(os.path.abspath(Path(config.path).expanduser()))  # noqa: PTH100, keeps links
    expected = "table file" if config.kind == "table" else "folder"
    if path.is_file() if config.kind == "table" else path.is_dir():
        return path
    if path.exists():
        raise UsageError(
            f"corpus `{config.title}`: looked for the {expected} {path}, {describe_folder(path)}"
        )
    parent = next(folder for folder in path.parents if folder.exists())
    raise UsageError(
        f"corpus `{config.title}`: looked for the {expected} {path}, which does not exist; "
        f"in {parent} {describe_folder(parent)}"
    )


def load(
    config: CorpusConfig,
    labels: LabelsConfig | None = None,
    root: Path | None = None,
    tasks: TasksConfig | None = None,
) -> Iterator[Record]:
    """Yield the corpus's records in a fixed order.

    Args:
        config: `config.limit` ends the corpus after that many utterances.
        labels: the job's classes; default: the published seven.
        root: the folder to read; default: `corpus_root(config)`.
        tasks: what the job predicts; default: the classes.

    Raises:
        UsageError: if the folder is not the corpus.
        MultistillError: if a folder or a table cannot be read.
    """
    folder = corpus_root(config) if root is None else Path(os.path.abspath(root))  # noqa: PTH100
    reader = LabelReader(labels, config.labels, tasks, config.unlabelled)
    utterances = 0
    try:
        for record in import_loader(config.kind)(config, folder, reader):
            yield record
            utterances += isinstance(record, Utterance)
            if utterances == config.limit:
                return
    except OSError as error:
        raise MultistillError(
            f"corpus `{config.title}`: {error.filename} cannot be read: {error.strerror}; "
            "check its permissions and the disk"
        ) from error
