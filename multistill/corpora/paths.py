"""Finding the files of a corpus without leaving its root folder."""

from __future__ import annotations

import os
import stat
import unicodedata
from functools import lru_cache
from itertools import product
from pathlib import Path

from multistill.config import CorpusConfig
from multistill.config.names import is_invisible
from multistill.errors import UsageError

UNPACK_HINT = (
    "unpack the archive again with `python -m zipfile --metadata-encoding cp949 -e ARCHIVE FOLDER`"
)


_LONGEST_ENDING = 4  # letters: `.flac`, `.aiff`


def audio_folder(config: CorpusConfig, table: Path) -> Path:
    """The folder that a table's audio paths are relative to; default: the table's folder."""
    return Path(config.audio_root).expanduser() if config.audio_root else table.parent


def list_files(folder: Path, root: Path) -> dict[str, bool]:
    """Names of the files in `folder` -> whether the file is inside `root`.

    Reads the directory once instead of checking each file. A folder that does not exist gives
    no files. A file is outside the root if it, or a folder above it, is a link to elsewhere.
    """
    if not folder.is_dir():
        return {}
    real_root = _real(root)
    folder_inside = _real(folder).is_relative_to(real_root)
    with os.scandir(folder) as entries:
        return {
            entry.name: folder_inside
            and (not entry.is_symlink() or _real(entry.path).is_relative_to(real_root))
            for entry in entries
            if _is_file(entry)
        }


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, reported when the file is opened
        return True


def _real(path: Path | str) -> Path:
    # Not Path.resolve(), which raises on a link to itself.
    return Path(os.path.realpath(path))


def require_inside(table: Path, root: Path) -> Path:
    """Return the path of a corpus's table if it is inside the corpus folder.

    Raises:
        UsageError: if it, or a folder above it, is a link that leaves the corpus folder.
    """
    if not _real(table).is_relative_to(_real(root)):
        raise UsageError(
            f"{table} is reached by a link that leaves the corpus folder; copy it into {root}"
        )
    return table


def printable(name: str) -> str:
    r"""A name as text that can be encoded and seen.

    Bytes that are not UTF-8 become `\xb0`, control and invisible characters `<U+200B>`.
    """
    if name.isascii() and name.isprintable():
        return name
    shown = "".join(c if c == " " or not _hidden(c) else f"<U+{ord(c):04X}>" for c in name)
    return shown.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _hidden(character: str) -> bool:
    """Whether a character shows nothing, or a space that is none of the keyboard's."""
    category = unicodedata.category(character)
    if category == "Cs":
        return not "\udc80" <= character <= "\udcff"  # these stand for bytes
    return is_invisible(character) or category in {"Cc", "Cn", "Co", "Zl", "Zp", "Zs"}


def is_utf8(name: str) -> bool:
    """Whether a file name is UTF-8; Python represents other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def nfc_names(folder: Path) -> dict[str, str]:
    """Names in a folder, in NFC and with a lower-case ending -> form on disk.

    Archives made on macOS have NFD names, those of recorders `.WAV`.
    """
    if not folder.is_dir():
        return {}
    names = sorted(child.name for child in folder.iterdir())
    return {lower_ending(unicodedata.normalize("NFC", name)): name for name in names}


def lower_ending(name: str) -> str:
    """A file name with its ending in lower case; `a.WAV` and `a.wav` are the same kind of file."""
    stem, dot, ending = name.rpartition(".")
    return f"{stem}.{ending.lower()}" if dot and "/" not in ending else name


def describe_folder(folder: Path, most: int = 6) -> str:
    """What a folder contains, as the end of an error message."""
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
    return "found " + ", ".join(map(printable, names[:most])) + rest


def wrong_folder(corpus: str, expected: str, root: Path) -> UsageError:
    """The error for a folder that is not the corpus; suggests a subfolder that may be it."""
    folders = [child for child in sorted(root.iterdir()) if child.is_dir()] if root.is_dir() else []
    first = expected.replace("/", ",").split(",", 1)[0]
    named = [child for child in folders if is_utf8(child.name)]
    hint = next((f"; did you mean {child}?" for child in named if (child / first).exists()), "")
    if not hint and not all(is_utf8(name) for name in nfc_names(root)):
        hint = f"; names there are not UTF-8: {UNPACK_HINT}"
    return UsageError(
        f"{root} is not {corpus}: looked for {expected}, {describe_folder(root)}{hint}"
    )


def _forms(name: str) -> list[str]:
    """Spellings of a file name: Unicode forms, and short endings in any case."""
    forms = dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))])
    spellings = []
    for form in forms:
        stem, dot, ending = form.rpartition(".")
        if not dot or len(ending) > _LONGEST_ENDING:
            spellings.append(form)
            continue
        cases = product(*((letter.lower(), letter.upper()) for letter in ending))
        spellings += dict.fromkeys([form, *(f"{stem}.{''.join(letters)}" for letters in cases)])
    return spellings


class FileResolver:
    """Resolves file names given in a table, and refuses those that leave the root.

    Each folder is resolved once; each file costs one `lstat`.
    """

    def __init__(self, root: Path, folders: int = 256) -> None:
        # Not resolve(), which follows links: audio paths must start as written in the job file.
        self._prefix = os.path.abspath(root).rstrip("/") + "/"  # noqa: PTH100
        self._real_root = _real(root)
        self._cached_folder = lru_cache(folders)(self._folder)

    def _is_inside(self, path: str) -> bool:
        return _real(path).is_relative_to(self._real_root)

    def _folder(self, name: str) -> str | None:
        """A folder's normalized path with a final slash; None if it is outside the root."""
        path = os.path.normpath(name if name[:1] == "/" else self._prefix + name).rstrip("/") + "/"
        return path if path.startswith(self._prefix) and self._is_inside(path) else None

    def resolve(self, name: str) -> str:
        """The absolute path of the file `name`, which is relative to the root.

        Raises:
            ValueError: if it leaves the root or is not a file; the message is human-readable.
        """
        # Strings only: this runs once per row, and a Path costs more than the `lstat`.
        last = name[name.rfind("/") + 1 :]
        if last in {"", ".", ".."}:  # a folder
            last = ""
        folder = None if "\0" in name else self._cached_folder(name[: len(name) - len(last)])
        if folder is None:
            raise ValueError(f"{name!r} leaves the corpus folder")
        path = folder + last
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                if not self._is_inside(path):
                    raise ValueError(f"{name!r} is a link that leaves the corpus folder")
                mode = os.stat(path).st_mode  # noqa: PTH116, like the lstat above
        except OSError as error:
            if (on_disk := self._written_otherwise(path)) is not None:
                return self.resolve(on_disk)
            raise ValueError(f"no such file: {name}") from error
        if not stat.S_ISREG(mode):
            raise ValueError(f"not a file: {name}")
        return path

    def _written_otherwise(self, path: str) -> str | None:
        """The path relative to the root as it is on disk, if only its spelling differs.

        Archives made on macOS have NFD names, and tables usually NFC; a table says `.wav` of
        files that a recorder calls `.WAV`.
        """
        on_disk = self._prefix
        for part in path[len(self._prefix) :].split("/"):
            existing = next(
                (form for form in _forms(part) if os.path.lexists(on_disk + form)), None
            )
            if existing is None:
                return None
            on_disk += f"{existing}/"
        return None if on_disk == f"{path}/" else on_disk[len(self._prefix) : -1]
