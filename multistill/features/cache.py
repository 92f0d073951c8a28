"""A copy of a feature store on the node's own disk, made once per node.

For stores in an object store, and for shared folders that are slower than a local disk.
Trials of a node that start together wait for one copy instead of making one each. The
copy is named by the content of features.json, which holds every shard's checksum, so
the same store reached by two ways is one copy.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pyarrow as pa
from filelock import FileLock
from pyarrow import fs

from multistill.errors import MultistillError
from multistill.features.store import FACTS, SHARDS, FeatureStore
from multistill.workspace import atomic_path

CACHE_VARIABLE = "MULTISTILL_FEATURES_CACHE"
"""Environment variable: the folder for copies. Where set, shared folders are copied too."""

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""As in the AWS SDKs: the address of an S3 service other than Amazon's, e.g. MinIO."""

_USER = re.compile(r"://(?:[^/\s]*|[^/\s@:]*:\S*)@")
"""Keys inside an address; a secret may hold a slash."""


def open_store(source: str | Path) -> FeatureStore:
    """The store at a folder or address, through the node's copy of it where one is wanted.

    Args:
        source: a folder, or a URI as for `local_copy`.
    Raises:
        MultistillError: it is no finished store, or cannot be copied.
    """
    return FeatureStore(local_folder(source))


def local_folder(source: str | Path) -> Path:
    """Where to read a store from on this node: its own folder, or the node's copy of it."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if "://" not in str(source) and not chosen:
        return Path(source)
    return local_copy(source, Path(chosen or Path(tempfile.gettempdir()) / "multistill-features"))


def local_copy(source: str | Path, cache: Path) -> Path:
    """The copy of a store below `cache`, made now unless it is there; whole or not at all.

    Args:
        source: a folder, or a URI that pyarrow understands (`s3://bucket/...`, `gs://...`);
            for S3, credentials and ENDPOINT_VARIABLES come from the environment.
    Raises:
        MultistillError: the source cannot be read or is no finished store, or there is no
            room for the copy.
    """
    text = str(source)
    try:
        if "://" in text:
            system, path = fs.FileSystem.from_uri(_with_endpoint(text))
        else:
            system, path = fs.LocalFileSystem(), str(Path(text).absolute())
        with system.open_input_stream(f"{path}/{FACTS}") as stream:
            facts = stream.read()
    except (OSError, pa.ArrowInvalid) as error:
        raise MultistillError(
            f"the feature store {_masked(text)} cannot be read ({_first_line(error)}); run the "
            "features stage, or check the address and the credentials"
        ) from error
    name = hashlib.blake2b(facts, digest_size=8).hexdigest()
    target = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
        if not target.exists():
            with atomic_path(target) as partial:
                # copy_files creates the folders that it lists; an object store has none.
                (partial / SHARDS).mkdir(parents=True)
                try:
                    fs.copy_files(
                        path,
                        str(partial),
                        source_filesystem=system,
                        destination_filesystem=fs.LocalFileSystem(),
                    )
                except OSError as error:
                    raise MultistillError(
                        f"the feature store {_masked(text)} cannot be copied to {cache} "
                        f"({_first_line(error)}); run again, after freeing space or naming "
                        f"another folder by {CACHE_VARIABLE} where the disk is full"
                    ) from error
                FeatureStore(partial).verify()
    return target


def _first_line(error: Exception) -> str:
    return _masked(str(error)).splitlines()[0][:200]


def _masked(text: str) -> str:
    """The text without the keys that an address may carry, which pyarrow takes."""
    return _USER.sub("://***@", text)


def _with_endpoint(address: str) -> str:
    """An S3 address that names its service: pyarrow reads the variables of the SDKs but this."""
    endpoint = next(filter(None, map(os.environ.get, ENDPOINT_VARIABLES)), None)
    if not endpoint or not address.startswith("s3://") or "endpoint_override=" in address:
        return address
    service = urlsplit(endpoint)
    options = urlencode({"scheme": service.scheme, "endpoint_override": service.netloc})
    return f"{address}{'&' if '?' in address else '?'}{options}"
