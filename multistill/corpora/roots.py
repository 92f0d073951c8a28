"""The folders that a job may read recordings from, and whether a manifest stays inside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from multistill.config import CorpusConfig
from multistill.corpora.paths import audio_folder
from multistill.corpora.rows import ROW_GROUP
from multistill.damaged import read_table


def corpus_roots(corpora: Sequence[CorpusConfig], unpacked: Path) -> list[Path]:
    """The folder of each corpus's recordings, links resolved.

    Args:
        unpacked: where packaged corpora are unpacked.
    """
    return [Path(os.path.realpath(_root(config, unpacked))) for config in corpora]


def _root(config: CorpusConfig, unpacked: Path) -> Path:
    if config.path is None:
        return unpacked
    path = Path(config.path).expanduser()
    return audio_folder(config, path) if config.kind == "table" else path


def stays_inside(manifest: Path, roots: Sequence[Path]) -> bool:
    """Whether every recording of a manifest is in one of the folders.

    `prepare` writes no other path: one that leads elsewhere was put there by somebody who may
    write to the workspace, and the job would read that file with the rights of its owner.

    Raises:
        MultistillError: the manifest is damaged.
    """
    rows = read_table(manifest, columns=["audio_path"])
    folders: set[str] = set()
    for batch in rows.to_batches(max_chunksize=ROW_GROUP):
        paths = batch.column(0).unique().to_pylist()
        if not all(isinstance(path, str) and os.path.isabs(path) for path in paths):  # noqa: PTH117
            return False
        folders.update(os.path.dirname(path) for path in paths)  # noqa: PTH120
        links = (path for path in paths if os.path.islink(path))  # noqa: PTH114
        if not all(_is_inside(link, roots) for link in links):
            return False
    return all(_is_inside(folder, roots) for folder in folders)


def _is_inside(path: str, roots: Sequence[Path]) -> bool:
    place = Path(os.path.realpath(path))
    return any(place.is_relative_to(root) for root in roots)
