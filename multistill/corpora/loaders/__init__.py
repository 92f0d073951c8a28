"""Which loader reads which kind of corpus, and where a corpus lies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TypeVar, cast

from multistill.config import CorpusConfig, CorpusKind
from multistill.corpora.paths import found_below
from multistill.corpora.records import Loader, Record, Rows, Utterance
from multistill.errors import MultistillError, UsageError

T = TypeVar("T")

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
    return cast(Loader, getattr(import_module(f"multistill.corpora.loaders.{module}"), function))


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
    rows = read(config, root)
    for row in rows.items:
        yield from rows.make([row])


def read(config: CorpusConfig, root: Path | None = None) -> Rows:
    """What `load` gives, before the work that many processes can share."""
    where = corpus_root(config) if root is None else Path(os.path.abspath(root))  # noqa: PTH100
    with _readable(config):
        found = loader(config.kind)(config, where)
    if isinstance(found, Rows):
        if config.limit is None:
            return replace(found, items=_guarded(config, found.items))
        items, make = found.items, found.make
        found = chain.from_iterable(make([row]) for row in items)
    return Rows(_guarded(config, _limited(found, config.limit)), list)


def _limited(records: Iterable[Record], limit: int | None) -> Iterator[Record]:
    kept = 0
    for record in records:
        yield record
        kept += isinstance(record, Utterance)
        if kept == limit:
            return


def _guarded(config: CorpusConfig, items: Iterator[T]) -> Iterator[T]:
    with _readable(config):
        yield from items


@contextmanager
def _readable(config: CorpusConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MultistillError(
            f"corpus `{config.title}`: {error.filename} cannot be read: {error.strerror}; "
            "look at its permissions and the disk"
        ) from error
