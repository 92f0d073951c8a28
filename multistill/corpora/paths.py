"""Finding a corpus's files without ever leaving its root."""

from __future__ import annotations

import os
import stat
import unicodedata
from functools import lru_cache
from pathlib import Path

from multistill.config import CorpusConfig
from multistill.errors import UsageError

UNPACK = "unpack the archive again so that they are, as by `unzip -O cp949`"
"""What helps where names are not UTF-8."""


def audio_folder(config: CorpusConfig, table: Path) -> Path:
    """Where the audio paths of a table start: a path like `path` itself, or the table's folder."""
    return Path(config.audio_root).expanduser() if config.audio_root else table.parent


def listing(folder: Path, root: Path) -> dict[str, bool]:
    """SeenIds of the files in `folder` -> whether the file stays below `root`.

    One directory read instead of a question a file. A folder that is not there is empty.
    A file leaves the root when it, or a folder above it, is a link to somewhere else.
    """
    if not folder.is_dir():
        return {}
    real_root = _real(root)
    home = _real(folder).is_relative_to(real_root)
    with os.scandir(folder) as entries:
        return {
            entry.name: home
            and (not entry.is_symlink() or _real(entry.path).is_relative_to(real_root))
            for entry in entries
            if _is_file(entry)
        }


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself: whoever opens it will say so
        return True


def _real(path: Path | str) -> Path:
    # Not resolve(): on a link to itself it raises.
    return Path(os.path.realpath(path))


def enclosed(table: Path, root: Path) -> Path:
    """A table of a corpus.

    Raises:
        UsageError: where it, or a folder above it, is a link that leaves the corpus.
    """
    if not _real(table).is_relative_to(_real(root)):
        raise UsageError(
            f"{table} is reached by a link that leaves the corpus folder; copy it into {root}"
        )
    return table


def utf8(name: str) -> str:
    """A file's name as text that can be written; what is not UTF-8 becomes `\\xb0`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_utf8(name: str) -> bool:
    """Whether a file's name is UTF-8; Python keeps other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def entries(folder: Path) -> dict[str, str]:
    """SeenIds below a folder, NFC -> as on disk (archives made on a Mac hold NFD names)."""
    if not folder.is_dir():
        return {}
    names = sorted(child.name for child in folder.iterdir())
    return {unicodedata.normalize("NFC", name): name for name in names}


def found_below(folder: Path, most: int = 6) -> str:
    """What a folder holds, for the message that says what was looked for."""
    if not folder.exists():
        return "there is no such folder"
    if not folder.is_dir():
        return "it is a file"
    names = sorted(
        child.name + ("/" if child.is_dir() else "")
        for child in folder.iterdir()
        if not child.name.startswith(".")
    )
    if not names:
        return "it is empty"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return "found " + ", ".join(map(utf8, names[:most])) + rest


def not_the_corpus(corpus: str, looked_for: str, root: Path) -> UsageError:
    """The error for a folder that is not the corpus; names a subfolder that may be it."""
    inner = [child for child in (sorted(root.iterdir()) if root.is_dir() else []) if child.is_dir()]
    first = looked_for.replace("/", ",").split(",", 1)[0]
    hint = next((f"; did you mean {child}?" for child in inner if (child / first).exists()), "")
    if not hint and not all(is_utf8(name) for name in entries(root)):
        hint = f"; names there are not UTF-8: {UNPACK}"
    return UsageError(f"{root} is not {corpus}: looked for {looked_for}, {found_below(root)}{hint}")


class Enclosure:
    """Turns names from a table into files, and refuses those that leave the root.

    A folder is resolved once; a file costs one `lstat`.
    """

    def __init__(self, root: Path, folders: int = 256) -> None:
        # resolve() would follow links, and audio paths are to read as the job file says.
        self._start = os.path.abspath(root).rstrip("/") + "/"  # noqa: PTH100
        self._real_root = _real(root)
        self._home = lru_cache(folders)(self._folder)

    def _is_inside(self, path: str) -> bool:
        return _real(path).is_relative_to(self._real_root)

    def _folder(self, name: str) -> str | None:
        """A folder's path without dots, ending in a slash; None where it is not inside."""
        path = os.path.normpath(name if name[:1] == "/" else self._start + name).rstrip("/") + "/"
        return path if path.startswith(self._start) and self._is_inside(path) else None

    def file(self, name: str) -> str:
        """The absolute path of the file that `name`, relative to the root, means.

        Raises:
            ValueError: where it leaves the root or is no file; the text is a reason for people.
        """
        # Text all the way: this runs once a row, and a Path costs more than the `lstat`.
        last = name[name.rfind("/") + 1 :]
        if last in {"", ".", ".."}:  # a folder
            last = ""
        home = None if "\0" in name else self._home(name[: len(name) - len(last)])
        if home is None:
            raise ValueError(f"{name!r} leaves the corpus folder")
        path = home + last
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                if not self._is_inside(path):
                    raise ValueError(f"{name!r} is a link that leaves the corpus folder")
                mode = os.stat(path).st_mode  # noqa: PTH116, beside lstat
        except OSError as error:
            if (other := self._spelt(path)) is not None:
                return self.file(other)
            raise ValueError(f"no such file: {name}") from error
        if not stat.S_ISREG(mode):
            raise ValueError(f"not a file: {name}")
        return path

    def _spelt(self, path: str) -> str | None:
        """The path as it is on disk where only its Unicode form differs, relative to the root.

        Archives made on a Mac hold NFD names, which tables do not.
        """
        if path.isascii():
            return None
        found = self._start
        for part in path[len(self._start) :].split("/"):
            forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
            there = next((form for form in forms if os.path.lexists(found + form)), None)
            if there is None:
                return None
            found += f"{there}/"
        return None if found == f"{path}/" else found[len(self._start) : -1]
