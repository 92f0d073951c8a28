"""The prepare stage: corpora to one manifest, with rejections, notes and a quality report."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from multistill.audio import SUFFIXES
from multistill.audio.digests import Digests
from multistill.config import (
    CorpusConfig,
    LabelsConfig,
    ProtocolConfig,
    SplitConfig,
    TasksConfig,
)
from multistill.corpora import quality
from multistill.corpora.build import BuildResult, build_manifest
from multistill.corpora.coverage import coverage_gaps
from multistill.corpora.cross_validation import leaks_of_folds, split_folds
from multistill.corpora.dimensions import count_dimensions, refuse_missing, refuse_off_scale
from multistill.corpora.loaders import corpus_root, demo, load
from multistill.corpora.manifest import NOTES, QUALITY, REJECTED, write_manifest
from multistill.corpora.paths import audio_folder
from multistill.corpora.records import Record
from multistill.corpora.rejections import Rejections
from multistill.corpora.rows import ROW_GROUP, Rows, tables
from multistill.corpora.split import PARTS, Split, hash64, leaks, refuse_leaks, split_rows
from multistill.corpora.unlabelled import (
    Unlabelled,
    parts_column,
    refuse_empty,
    sentences,
    unlabelled_titles,
)
from multistill.damaged import read_table
from multistill.errors import MultistillError, UsageError
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.wording import counted
from multistill.workspace import fold_folder, write_json

_READ = SUFFIXES | {".csv", ".tsv", ".txt"}


def prepare(
    corpora: Sequence[CorpusConfig],
    split: SplitConfig,
    out: Path,
    *,
    labels: LabelsConfig | None = None,
    protocol: ProtocolConfig | None = None,
    tasks: TasksConfig | None = None,
    unpacked: Path,
    digests: Path | None = None,
    logger: RunLogger | None = None,
) -> dict[str, Any]:
    """Write `manifest.parquet`, `rejected.parquet`, `notes.parquet`, `quality.json` into `out`.

    Args:
        labels: the classes; default: the published seven.
        protocol: under cross-validation, `manifest.parquet` has every clip in test, with its fold
            in `fold`, and the folder of each fold (`workspace.fold_folder`) has a manifest
            with train, valid and test; default: holdout.
        tasks: what the job predicts; default: the classes.
        unpacked: folder into which packaged corpora (the demo corpus) are unpacked.
        digests: file that remembers the digests of recordings (`audio.digests.Digests`).

    Returns:
        `utterances`, `rejected`, `synthetic`, `leaks`, `splits` (counts), `unlabelled`: what
        became of corpora without labels (`Unlabelled.describe`); `rejected_kinds`: the
        commonest reasons with their number and the first row, `content`: digest of the input
        of the features (ids, audio and text), independent of the split; and under
        cross-validation `folds`, each with `name`, `test` (groups), `groups` and `splits`.

    Raises:
        UsageError: if a corpus is not found, or the split is impossible or leaks.
        MultistillError: if no utterance is left, or the values of a dimension of the job are off
            the corpus's scale, or a part lacks them.
    """
    with _system_allocator():
        known = Digests(digests)
        try:
            return _prepare(
                corpora,
                split,
                labels or LabelsConfig(),
                protocol or ProtocolConfig(),
                tasks or TasksConfig(classes=1.0),
                out,
                unpacked,
                known,
                logger or NullLogger(),
            )
        finally:
            known.save()


@contextmanager
def _system_allocator() -> Iterator[None]:
    """Let Arrow use malloc: its own allocator keeps the memory that growing arrays have used."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _prepare(
    corpora: Sequence[CorpusConfig],
    split: SplitConfig,
    labels: LabelsConfig,
    protocol: ProtocolConfig,
    tasks: TasksConfig,
    out: Path,
    unpacked: Path,
    digests: Digests,
    logger: RunLogger,
) -> dict[str, Any]:
    records = ((config.title, _records(config, labels, unpacked, tasks)) for config in corpora)
    without_labels = unlabelled_titles(corpora)
    built = build_manifest(
        records, split.ties, labels.classes, logger, digests, tasks, without_labels, out
    )
    refuse_off_scale(built.notes.kinds, tasks.dimensions)
    dropped = {
        title: built.dropped[title] / max(1, built.dropped[title] + kept)
        for title, kept in built.kept.items()
    }
    refuse_rejections(corpora, dropped, built.rejections.commonest())
    read = len(built.rows)
    unlabelled = Unlabelled.separate(built, without_labels)
    if not len(built.rows):
        raise MultistillError(_no_utterances(built.rejections))
    _refuse_one_class(built)
    logger.info(f"{counted(read, 'utterance')} read, {len(built.rejections)} rejected")
    for kind, count in built.rejections.kinds.most_common(3):
        logger.info(f"rejected: {count} x {kind}")
    folds: list[Split] = []
    given = _given(built.rows) if split.by == "column" else None
    with _telling_rejections(built):
        if protocol.crosses:
            whole, folds = split_folds(built.rows, protocol, split)
        else:
            whole = split_rows(built.rows, split, given)
    if folds:
        leaked = leaks_of_folds(built.rows, protocol, split, folds)
    else:
        leaked = leaks(built.rows, whole.part)
        refuse_leaks(leaked, split)
    for name in whole.facts["reassigned"]:
        logger.info(f"split: {name} was reassigned to a part that had no group")
    for number, part in enumerate(folds or [whole]):
        refuse_missing(built.rows, part.part, tasks.dimensions, number + 1 if folds else None)
    before = _with_parts(built.rows, whole)
    rows = before if folds else _apply_caps(before, split, built.rejections)
    if not folds and not split.allow_leak:
        unlabelled.reject_heard(built.rows, whole.part, built.rejections)
    about_unlabelled = unlabelled.describe(rows)
    rows = unlabelled.join(rows)
    report = quality.report(built, before, rows, whole.facts, leaked, split, split.seed)
    report["unlabelled"] = about_unlabelled
    refuse_empty(report["unlabelled"], built.rejections)
    for sentence in sentences(report["unlabelled"]):
        logger.info(sentence)
    if not folds:
        for gap in coverage_gaps(report["split"]["classes"]):
            logger.info(f"{gap.title}: {gap.text}")
    report["synthetic"] = any(config.kind == "demo" for config in corpora)
    write_manifest(rows, out)
    pq.write_table(built.rejections.table(), out / REJECTED)
    built.notes.write(out / NOTES)
    write_json(out / QUALITY, report)
    summary: dict[str, Any] = {}
    if folds:
        summary["folds"] = [
            _write_fold(built, fold, split, unlabelled, fold_folder(out, number))
            for number, fold in enumerate(folds)
        ]
    return summary | {
        "utterances": len(rows),
        "rejected": len(built.rejections),
        "rejected_share": {title: round(share, 6) for title, share in dropped.items()},
        "rejected_for": built.rejections.commonest(),
        "rejected_kinds": built.rejections.groups(),
        "synthetic": report["synthetic"],
        "leaks": report["leaks"],
        "splits": report["counts"]["split"],
        "content": _content(rows),
        "unlabelled": report["unlabelled"],
        **count_dimensions(rows, tasks.dimensions),
    }


@contextmanager
def _telling_rejections(built: BuildResult) -> Iterator[None]:
    """Add the commonest rejections to an error: there may be too few groups because of them."""
    try:
        yield
    except UsageError as error:
        if not len(built.rejections):
            raise
        raise UsageError(
            f"{error}; of {len(built.rows) + len(built.rejections)} rows and recordings, "
            f"{len(built.rejections)} are rejected: {built.rejections.commonest()}"
        ) from error


def _given(rows: Rows) -> list[str | None]:
    """The corpora's own split of each row."""
    shared: dict[str | None, str | None] = {}
    names: list[str | None] = []
    for table in tables(rows, ["given_split"]):
        names += [shared.setdefault(name, name) for name in table["given_split"].to_pylist()]
    return names


def _with_parts(rows: Rows, parts: Split) -> Rows:
    groups = pa.DictionaryArray.from_arrays(parts.groups.codes, pa.array(parts.groups.names))
    return (
        rows.append_column("split", parts_column(parts.part, PARTS))
        .append_column("fold", pa.array(parts.fold, pa.int32()))
        .append_column("group", groups)
    )


def _write_fold(
    built: BuildResult, fold: Split, split: SplitConfig, unlabelled: Unlabelled, folder: Path
) -> dict[str, Any]:
    """Write the manifest of one fold of a cross-validation; returns what the summary says of it.

    Clips above a cap of `split.max_per_class` are left out of this fold's training only, as are
    unlabelled clips of people whom this fold tests or validates on.
    """
    folder.mkdir(parents=True)
    rows = _apply_caps(_with_parts(built.rows, fold), split, Rejections())
    heard = None if split.allow_leak else unlabelled.heard(built.rows, fold.part)
    rows = unlabelled.join(rows, heard)
    write_manifest(rows, folder)
    return {**fold.facts, "splits": quality.counts(rows["split"])}


def _refuse_one_class(built: BuildResult) -> None:
    """Raise if all utterances with a label have the same one.

    Raises:
        MultistillError: there is nothing to tell apart.
    """
    labels = pc.unique(built.rows["label"].drop_null()).to_pylist()
    if len(labels) == 1:
        rejected = f"; rejected: {built.rejections.commonest()}" if len(built.rejections) else ""
        raise MultistillError(
            f"every utterance with a label is `{labels[0]}`, so there is nothing to tell apart; "
            f"check `labels` of the job (classes, merge, leave_out) and of the corpora{rejected}"
        )


def excessive_rejections(
    corpora: Sequence[CorpusConfig], shares: Mapping[str, float], reasons: str
) -> Iterator[str]:
    """A sentence for each corpus of which more is rejected than the job allows.

    Args:
        shares: rejected share of rows and recordings by corpus title.
        reasons: the commonest reasons of all corpora.
    """
    for config in corpora:
        share = shares.get(config.title, 0.0)
        if share > config.max_rejected:
            yield (
                f"corpus `{config.title}`: {share:.1%} of its rows and recordings are rejected, "
                f"the limit is {config.max_rejected:.1%} (max_rejected): {reasons}; correct them, "
                "or raise the limit"
            )


def refuse_rejections(
    corpora: Sequence[CorpusConfig], shares: Mapping[str, float], reasons: str
) -> None:
    """Raise for the first of the `excessive_rejections`.

    Raises:
        MultistillError: more of a corpus is rejected than the job allows.
    """
    for sentence in excessive_rejections(corpora, shares, reasons):
        raise MultistillError(sentence)


def _records(
    config: CorpusConfig, labels: LabelsConfig, unpacked: Path, tasks: TasksConfig
) -> Iterator[Record]:
    return load(config, labels, demo.unpack(unpacked) if config.kind == "demo" else None, tasks)


def _no_utterances(rejections: Rejections) -> str:
    if not len(rejections):
        return "the corpora have no utterances; check `corpora` in the job file"
    others = f"; in all: {rejections.commonest()}" if len(rejections.kinds) > 1 else ""
    return (
        f"all {len(rejections)} utterances are rejected; the first, {rejections.sources[0]}: "
        f"{rejections.reasons[0]}{others}"
    )


def _apply_caps(rows: Rows, split: SplitConfig, rejections: Rejections) -> Rows:
    """Reject training utterances above their class's cap, those with the highest seeded hash.

    The hash is of the id, so an utterance's rank does not depend on the others.
    """
    keep = np.ones(len(rows), bool)
    train = pc.equal(rows["split"], "train")
    for label, most in split.max_per_class.items():
        chosen = pc.and_(train, pc.fill_null(pc.equal(rows["label"], label), False))
        indices = np.flatnonzero(chosen.to_numpy())
        names = rows.take("utterance_id", indices)
        order = sorted(
            range(len(names)), key=lambda i: (hash64(split.seed, "cap", names[i]), names[i])
        )
        for i in order[most:]:
            keep[indices[i]] = False
            rejections.add("cap", names[i], f"excluded by split.max_per_class.{label}: {most}")
    return rows.filter(keep)


def _content(rows: Rows) -> str:
    """Digest of the set of (id, audio digest, text), the input of the features.

    It is the sum of the rows' digests, which does not depend on their order (AdHash: Bellare
    and Micciancio, "A New Paradigm for Collision-Free Hashing", 1997).
    """
    total = 0
    for batch in tables(rows, ["utterance_id", "audio_digest", "text"]):
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            state = hashlib.blake2b("\0".join(values).encode(), digest_size=32)
            total += int.from_bytes(state.digest(), "little")
    return f"{total % 2**256:064x}"


def is_current(manifest: Path, digests: Path) -> bool:
    """Whether the recordings of a manifest still have the content that it names.

    `listing` does not see a file that was edited in place and given its old time again; the
    remembered digests do (`audio.digests.Digests`). Only files that look changed are read.
    A manifest that was deleted or cut off is not current.
    """
    try:
        rows = read_table(manifest, columns=["audio_path", "audio_digest"])
    except (FileNotFoundError, MultistillError):
        return False
    known = Digests(digests)
    try:
        for batch in rows.to_batches(max_chunksize=ROW_GROUP):
            content = dict(zip(*(column.to_pylist() for column in batch.columns), strict=True))
            if not known.confirm(list(content), list(content.values())):
                return False
        return True
    finally:
        known.save()


def listing(corpora: Sequence[CorpusConfig]) -> str:
    """Digest of the corpora's files by relative path, size and modification time.

    It decides whether an existing manifest is up to date. The demo corpus enters by its content.
    Only file types that loaders read enter, so other files in the folder have no effect.

    Raises:
        UsageError: if a corpus's folder or table does not exist.
    """
    state = hashlib.blake2b(digest_size=16)
    for config in corpora:
        state.update(f"{config.title}\0{config.kind}\n".encode())
        if config.kind == "demo":
            state.update(demo.digest().encode())
            continue
        root = corpus_root(config)
        suffixes = _READ
        if config.kind == "table":
            _add_file(state, root, root.name)
            root = audio_folder(config, root)
            suffixes = SUFFIXES | {".txt"}
        for path, name in _files(root, suffixes):
            _add_file(state, path, name)
    return state.hexdigest()


def folder_listing(folder: Path) -> str:
    """Digest of a folder's audio files, as `listing`; of none, if there is no such folder."""
    state = hashlib.blake2b(digest_size=16)
    for path, name in _files(folder, SUFFIXES) if folder.is_dir() else ():
        _add_file(state, path, name)
    return state.hexdigest()


def _add_file(state: Any, path: Path | os.DirEntry[str], name: str) -> None:
    try:
        stat = path.stat()
    except OSError:  # deleted meanwhile, or a dangling link
        return
    state.update(os.fsencode(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))


def _files(root: Path, suffixes: Set[str]) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Files below a folder in a fixed order, without hidden ones and linked folders."""
    folders = [(root, "")]
    while folders:
        folder, prefix = folders.pop()
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise UsageError(f"{folder} cannot be read: {error.strerror}") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                folders.append((Path(entry.path), f"{name}/"))
            elif os.path.splitext(entry.name)[1].lower() in suffixes:  # noqa: PTH122, hot
                yield entry, name
