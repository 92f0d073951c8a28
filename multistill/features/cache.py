"""A copy of a feature store on the node's own disk, made once per node.

For stores in an object store, and for shared folders that are slower than a local disk.
Trials of a node that start together wait for one copy instead of making one each. The
copy is named by the content of features.json, which holds every shard's checksum, so
the same store reached by two ways is one copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
from filelock import FileLock
from pyarrow import fs

from multistill.errors import MultistillError

CACHE_VARIABLE = "MULTISTILL_FEATURES_CACHE"
"""Environment variable: the folder for copies. Where set, shared folders are copied too."""


def local_folder(source: str | Path) -> Path:
    """Where to read a store from on this node: its own folder, or the node's copy of it."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if "://" not in str(source) and not chosen:
        return Path(source)
    return local_copy(source, Path(chosen or Path(tempfile.gettempdir()) / "multistill-features"))


def local_copy(source: str | Path, cache: Path) -> Path:
    """The copy of a store below `cache`, made now unless it is there; whole or not at all.

    Args:
        source: a folder, or a URI that pyarrow understands (`s3://bucket/...`, `gs://...`).
    Raises:
        MultistillError: the source cannot be read or is no finished store.
    """
    from multistill.features.store import FACTS, FeatureStore

    text = str(source)
    try:
        if "://" in text:
            system, path = fs.FileSystem.from_uri(text)
        else:
            system, path = fs.LocalFileSystem(), str(Path(text).absolute())
        with system.open_input_stream(f"{path}/{FACTS}") as stream:
            facts = stream.read()
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0][:200]
        raise MultistillError(
            f"the feature store {text} cannot be read ({reason}); run the features stage, or "
            "check the address and the credentials"
        ) from error
    name = hashlib.blake2b(facts, digest_size=8).hexdigest()
    target = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
        if not target.exists():
            partial = cache / f".{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            fs.copy_files(
                path,
                str(partial),
                source_filesystem=system,
                destination_filesystem=fs.LocalFileSystem(),
            )
            FeatureStore.at(partial).verify()
            partial.rename(target)
    return target
