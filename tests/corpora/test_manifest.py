"""Reading the manifest."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from multistill.corpora.manifest import REJECTED_SCHEMA, read_manifest
from multistill.errors import MultistillError


def test_a_missing_or_foreign_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MultistillError, match="there is no manifest at"):
        read_manifest(tmp_path)
    pq.write_table(REJECTED_SCHEMA.empty_table(), tmp_path / "manifest.parquet")
    with pytest.raises(MultistillError, match="lacks utterance_id, corpus"):
        read_manifest(tmp_path)
