"""Labels of a manifest's rows as arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from multistill.config import CLASSES
from multistill.corpora.manifest import label_arrays, manifest_schema


def test_label_arrays_hold_class_indices_and_shares_of_chunked_and_filtered_tables() -> None:
    labels = ["fear", None, "neutral", "sad", None]
    shares = np.random.default_rng(0).dirichlet(np.ones(len(CLASSES)), len(labels))
    shares = shares.astype(np.float32)
    schema = manifest_schema(CLASSES)
    fields = [schema.field(name) for name in ("label", "label_soft")]
    table = pa.table([labels, shares.tolist()], schema=pa.schema(fields, schema.metadata))
    chunked = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    keep = np.array([True, False, True, True, True])
    for rows, mask in ((chunked, slice(None)), (chunked.filter(pa.array(keep)), keep)):
        index, soft = label_arrays(rows)
        assert index.dtype == np.int64 and soft.dtype == np.float32
        np.testing.assert_array_equal(index, np.array([6, -1, 0, 4, -1])[mask])
        np.testing.assert_array_equal(soft, shares[mask])
    index, soft = label_arrays(table.slice(0, 0))
    assert index.shape == (0,) and soft.shape == (0, 7)
