"""A copy of a feature store on the local disk of a node, made once per node.

For feature stores in an object store, and for shared folders that are slower than a local disk.
Trials of a node that start at the same time wait for one copy under a file lock. The copy is
named by a digest of features.json, which holds every shard's checksum, so a store that is
reached through two addresses is copied once.
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
from multistill.features.store import INFO, SHARDS, FeatureStore
from multistill.workspace import atomic_path

CACHE_VARIABLE = "MULTISTILL_FEATURES_CACHE"
"""Environment variable: the folder for copies. If it is set, stores in folders are copied too."""

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Environment variables of the AWS SDKs: the address of another S3 service, e.g. MinIO."""

_CREDENTIALS = re.compile(r"://(?:[^/\s]*|[^/\s@:]*:\S*)@")
"""Credentials inside a URI; a secret key can contain a slash."""


def open_store(source: str | Path) -> FeatureStore:
    """Open the store at a folder or URI, from a copy on this node if `local_folder` makes one.

    Args:
        source: a folder, or a URI as for `local_copy`.

    Raises:
        MultistillError: it is not a finished store, or cannot be copied.
    """
    return FeatureStore(local_folder(source))


def local_folder(source: str | Path) -> Path:
    """The folder to read a store from on this node: the source itself, or a copy of it.

    URIs are always copied, folders only if CACHE_VARIABLE is set.
    """
    cache = os.environ.get(CACHE_VARIABLE)
    if "://" not in str(source) and not cache:
        return Path(source)
    return local_copy(source, Path(cache or Path(tempfile.gettempdir()) / "multistill-features"))


def local_copy(source: str | Path, cache: Path) -> Path:
    """The copy of a store below `cache`, created atomically unless it exists.

    Args:
        source: a folder, or a URI that pyarrow understands (`s3://bucket/...`, `gs://...`);
            for S3, credentials and ENDPOINT_VARIABLES come from the environment.

    Raises:
        MultistillError: the source cannot be read, is not a finished store or does not match
            its checksums, or the disk is full.
    """
    text = str(source)
    try:
        if "://" in text:
            system, path = fs.FileSystem.from_uri(_with_endpoint(text))
        else:
            system, path = fs.LocalFileSystem(), str(Path(text).absolute())
        with system.open_input_stream(f"{path}/{INFO}") as stream:
            info = stream.read()
    except (OSError, pa.ArrowInvalid) as error:
        raise MultistillError(
            f"the feature store {_masked(text)} cannot be read ({_first_line(error)}); check the "
            "address, the credentials, and that the store was copied there completely"
        ) from error
    name = hashlib.blake2b(info, digest_size=8).hexdigest()
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
                        f"({_first_line(error)}); if the disk is full, free some space or name "
                        f"another folder with {CACHE_VARIABLE}, then run again"
                    ) from error
                try:
                    FeatureStore(partial).verify()
                except MultistillError as error:
                    raise MultistillError(
                        f"the feature store {_masked(text)} is incomplete or does not match its "
                        "checksums; copy it there again"
                    ) from error
    return target


def _first_line(error: Exception) -> str:
    return _masked(str(error)).splitlines()[0][:200]


def _masked(text: str) -> str:
    """The text without the credentials that pyarrow accepts inside a URI."""
    return _CREDENTIALS.sub("://***@", text)


def _with_endpoint(address: str) -> str:
    """The S3 URI with its endpoint: the one variable of the AWS SDKs that pyarrow ignores."""
    endpoint = next(filter(None, map(os.environ.get, ENDPOINT_VARIABLES)), None)
    if not endpoint or not address.startswith("s3://") or "endpoint_override=" in address:
        return address
    service = urlsplit(endpoint)
    options = urlencode({"scheme": service.scheme, "endpoint_override": service.netloc})
    return f"{address}{'&' if '?' in address else '?'}{options}"
