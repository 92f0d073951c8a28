"""Which loader reads which kind of corpus, and where a corpus lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import cast

from multistill.config import CorpusConfig, CorpusKind
from multistill.corpora.paths import found_below
from multistill.corpora.records import Loader, Record, Utterance
from multistill.errors import MultistillError, UsageError

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
"""Kind -> module and function; each is imported when a job first asks for it."""


def loader(kind: CorpusKind) -> Loader:
    """The function that reads a kind of corpus."""
    module, function = LOADERS[kind].split(":")
    return cast(Loader, getattr(import_module(f"multistill.corpora.{module}"), function))


def corpus_root(config: CorpusConfig) -> Path:
    """The corpus's folder (for `table`, the table file) as an absolute path.

    Raises:
        UsageError: where it is not there; names what was looked for and what was found.
    """
    if config.path is None:
        raise UsageError(f"the {config.kind} corpus is packaged: it has no folder of its own")
    path = Path(os.path.abspath(Path(config.path).expanduser()))  # noqa: PTH100, keeps links
    wanted = "table file" if config.kind == "table" else "folder"
    if path.is_file() if config.kind == "table" else path.is_dir():
        return path
    if path.exists():
        raise UsageError(
            f"corpus `{config.title}`: looked for the {wanted} {path}, {found_below(path)}"
        )
    parent = next(folder for folder in path.parents if folder.exists())
    raise UsageError(
        f"corpus `{config.title}`: looked for the {wanted} {path}, which does not exist; "
        f"in {parent} {found_below(parent)}"
    )


def load(config: CorpusConfig, root: Path | None = None) -> Iterator[Record]:
    """The corpus's records one by one, in an order that does not change.

    `root` is the folder to read, default `corpus_root(config)`; the packaged demo corpus
    is read where it was unpacked. `config.limit` ends the corpus after so many utterances.

    Raises:
        UsageError: where the folder is not the corpus.
        MultistillError: where a folder or a table cannot be read.
    """
    read = loader(config.kind)
    kept = 0
    where = corpus_root(config) if root is None else Path(os.path.abspath(root))  # noqa: PTH100
    try:
        for record in read(config, where):
            yield record
            kept += isinstance(record, Utterance)
            if kept == config.limit:
                return
    except OSError as error:
        raise MultistillError(
            f"corpus `{config.title}`: {error.filename} cannot be read: {error.strerror}; "
            "look at its permissions and the disk"
        ) from error
