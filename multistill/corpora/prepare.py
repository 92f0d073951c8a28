"""The prepare stage: corpora to one manifest, what was left out, and a quality report."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from multistill.config import CorpusConfig, SplitConfig
from multistill.corpora import quality
from multistill.corpora.build import build_manifest
from multistill.corpora.loaders import corpus_root, demo, read
from multistill.corpora.manifest import MANIFEST_SCHEMA, NOTES, QUALITY, REJECTED, write_manifest
from multistill.corpora.paths import audio_folder
from multistill.corpora.records import Rows
from multistill.corpora.rejections import Rejections
from multistill.corpora.split import PARTS, hash64, leaks, refuse_leaks, split_rows
from multistill.errors import MultistillError, UsageError
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.workspace import write_json

AUDIO = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"}
_READ = AUDIO | {".csv", ".tsv", ".txt"}


def prepare(
    corpora: Sequence[CorpusConfig],
    split: SplitConfig,
    seed: int,
    out: Path,
    *,
    unpacked: Path,
    logger: RunLogger | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write `manifest.parquet`, `rejected.parquet`, `notes.parquet`, `quality.json` into `out`.

    Args:
        unpacked: folder for corpora that travel packed (the demo corpus).
        workers: processes that read rows and files; default one a CPU.
    Returns:
        `utterances`, `rejected`, `synthetic`, `leaks`, `splits` (counts), and `content`:
        digest of what features are made of (ids, audio and text), whatever the split.
    Raises:
        UsageError: where a corpus is not found, or the split cannot be made or leaks.
        MultistillError: where nothing is left to train on.
    """
    with _lean():
        return _prepare(corpora, split, seed, out, unpacked, logger or NullLogger(), workers)


@contextmanager
def _lean() -> Iterator[None]:
    """Arrow on the system's allocator: its own keeps what arrays needed while they grew."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _prepare(
    corpora: Sequence[CorpusConfig],
    split: SplitConfig,
    seed: int,
    out: Path,
    unpacked: Path,
    logger: RunLogger,
    workers: int | None,
) -> dict[str, Any]:
    told = ((config.title, _rows(config, unpacked)) for config in corpora)
    found = build_manifest(told, split.ties, workers, logger)
    if not len(found.rows):
        raise MultistillError(_nothing(found.rejections))
    logger.info(f"{len(found.rows)} utterances read, {len(found.rejections)} left out")
    given = found.rows["given_split"].to_pylist() if split.by == "column" else None
    made = split_rows(found.rows, split, seed, given)
    for name in made.facts["reassigned"]:
        logger.info(f"the split had to borrow {name}: chance gave one part no group")
    leaked = leaks(found.rows, made.part)
    refuse_leaks(leaked, split)
    before = found.rows.append_column(
        "split", pa.array(np.array(PARTS)[made.part], pa.string())
    ).append_column("fold", pa.array(made.fold, pa.int32()))
    rows = _capped(before, split.max_per_class, seed, found.rejections)
    report = quality.report(found, before, rows, made.facts, leaked, split, seed, workers)
    report["synthetic"] = any(config.kind == "demo" for config in corpora)
    write_manifest(rows.select(MANIFEST_SCHEMA.names), out)
    pq.write_table(found.rejections.table(), out / REJECTED)
    found.notes.write(out / NOTES)
    write_json(out / QUALITY, report)
    return {
        "utterances": len(rows),
        "rejected": len(found.rejections),
        "synthetic": report["synthetic"],
        "leaks": report["leaks"],
        "splits": report["counts"]["split"],
        "content": _content(rows),
    }


def _rows(config: CorpusConfig, unpacked: Path) -> Rows:
    return read(config, demo.unpack(unpacked) if config.kind == "demo" else None)


def _nothing(rejections: Rejections) -> str:
    if not len(rejections):
        return "the corpora hold no utterance; look at `corpora` in the job file"
    return (
        f"no utterance is left of {len(rejections)}; the first, {rejections.sources[0]}: "
        f"{rejections.reasons[0]}"
    )


def _capped(rows: pa.Table, caps: Mapping[str, int], seed: int, rejections: Rejections) -> pa.Table:
    """Training utterances above a class's cap leave, the last in a seeded order.

    The order is a hash of the id, so which clips stay does not depend on the others.
    """
    keep = np.ones(len(rows), bool)
    train = pc.equal(rows["split"], "train")
    for label, most in caps.items():
        chosen = pc.and_(train, pc.fill_null(pc.equal(rows["label"], label), False))
        at = np.flatnonzero(chosen.to_numpy())
        names = rows["utterance_id"].take(pa.array(at)).to_pylist()
        order = sorted(range(len(at)), key=lambda i: (hash64(seed, "cap", names[i]), names[i]))
        for i in order[most:]:
            keep[at[i]] = False
            rejections.add("cap", names[i], f"left out by split.max_per_class.{label}: {most}")
    return rows if keep.all() else rows.filter(pa.array(keep))


def _content(rows: pa.Table) -> str:
    """Digest of the set of (id, audio digest, text), of which features are made.

    The sum of the rows' digests, which the order of the rows does not change (AdHash:
    Bellare and Micciancio, "A New Paradigm for Collision-Free Hashing", 1997).
    """
    total = 0
    columns = rows.select(["utterance_id", "audio_digest", "text"])
    for batch in columns.to_batches(max_chunksize=8192):
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            state = hashlib.blake2b("\0".join(values).encode(), digest_size=32)
            total += int.from_bytes(state.digest(), "little")
    return f"{total % 2**256:064x}"


def listing(corpora: Sequence[CorpusConfig]) -> str:
    """Digest of the corpora's files by relative path, size and time of change.

    Decides whether what was prepared still holds. The demo corpus counts by its content.
    Only files that loaders read count, so a note or a workspace beside them does no harm.

    Raises:
        UsageError: where a corpus's folder or table is not there.
    """
    state = hashlib.blake2b(digest_size=16)
    for config in corpora:
        state.update(f"{config.title}\0{config.kind}\n".encode())
        if config.kind == "demo":
            state.update(demo.digest().encode())
            continue
        root = corpus_root(config)
        endings = _READ
        if config.kind == "table":
            _count(state, root, root.name)
            root = audio_folder(config, root)
            endings = AUDIO | {".txt"}
        for path, name in _files(root, endings):
            _count(state, path, name)
    return state.hexdigest()


def _count(state: Any, path: Path | os.DirEntry[str], name: str) -> None:
    try:
        found = path.stat()
    except OSError:  # gone meanwhile, or a link to nowhere
        return
    state.update(os.fsencode(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n"))


def _files(root: Path, endings: set[str]) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Files below a folder in a fixed order; hidden ones and linked folders left out."""
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
            elif os.path.splitext(entry.name)[1].lower() in endings:  # noqa: PTH122, hot
                yield entry, name
