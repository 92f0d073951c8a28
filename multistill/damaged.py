"""Files of a workspace that are not what this package wrote: cut off, altered, or planted.

Whoever may write to a workspace can put anything there, so what a reader meets is an error of
that file and not of this program: one sentence, and never code that runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.errors import MultistillError

if TYPE_CHECKING:
    import pyarrow as pa

_WRONG_CONTENT = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError),
    RuntimeError,  # depths that a file claims; torch's errors of shape
)
"""What reading a value of another kind or size than expected raises; `ArrowInvalid`, pydantic's
and JSON's errors are ValueErrors. Not MemoryError: another process may have taken the memory."""


@contextmanager
def reading(path: Path, folder: Path | None = None) -> Iterator[None]:
    """Turn what wrong content of a file raises into one sentence.

    A missing file, and errors that the operating system numbers, stay as they are.

    Args:
        folder: what is to be removed so that the job makes it again; default: the file's folder.

    Raises:
        MultistillError: the file is damaged.
    """
    try:
        yield
    except MultistillError:
        raise
    except Exception as error:
        if not _is_wrong_content(error):
            raise
        raise damaged(path, error, folder) from error


def damaged(path: Path, error: Exception, folder: Path | None = None) -> MultistillError:
    """The error for a damaged file; arguments as of `reading`."""
    return MultistillError(
        f"{path} is damaged ({_reason(error)}); remove the folder {folder or path.parent} and "
        "run the job again"
    )


def _is_wrong_content(error: Exception) -> bool:
    if isinstance(error, OSError):
        return (
            type(error) is OSError and error.errno is None
        )  # Arrow's, for a page of Parquet that cannot be decompressed
    named = {kind.__name__ for kind in type(error).__mro__}  # without importing their packages
    return isinstance(error, _WRONG_CONTENT) or bool(named & {"ArrowException", "SafetensorError"})


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def read_table(path: Path, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
    """Read a Parquet file of the workspace, with every value checked.

    Args:
        options: of `pyarrow.parquet.read_table`.

    Raises:
        FileNotFoundError: there is none.
        MultistillError: it is damaged, or lacks a column.
    """
    import pyarrow.parquet as pq

    with reading(path):
        names = None if columns is None else list(columns)
        # `read_table` imports pyarrow.dataset and pandas, which takes a job of no work 0.2 s.
        table = (
            pq.read_table(path, columns=names, **options)
            if options
            else pq.ParquetFile(path).read(columns=names)
        )
        table.validate(full=True)
        missing = [name for name in names or () if name not in table.column_names]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        return table


def read_parts(path: Path, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Read a Parquet file of the workspace in order, with every value checked.

    Args:
        rows: of each part but the last, whatever the file's row groups are.

    Raises:
        FileNotFoundError: there is none.
        MultistillError: it is damaged, or lacks a column.
    """
    import pyarrow.parquet as pq

    names = list(columns)
    with reading(path):
        file = pq.ParquetFile(path)
        if missing := [name for name in names if name not in file.schema_arrow.names]:
            raise ValueError(f"it has no column {', '.join(missing)}")
        for batch in file.iter_batches(rows, columns=names):
            batch.validate(full=True)
            yield batch.select(names)
