"""Text of a corpus: decoding, removal of KEMDy's tags and of characters without meaning."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from multistill.corpora.characters import visible
from multistill.corpora.encodings import (
    CANDIDATES,
    KOREAN,
    AmbiguousEncodingError,
    choose,
    mark_of,
)
from multistill.corpora.records import TextEncoding
from multistill.errors import UsageError

# c/ no pause, n/ noise, N/ mostly noise, u/ unintelligible, l/ hum, b/ breath; * partly
# heard, + stutter, / interjection. No letter precedes a letter tag, so `etc/` keeps its c.
_LETTER_TAG = re.compile(r"(?<![A-Za-z])[cnNulb]/")
_SIGN_TAG = re.compile(r"[*+/]")

_MOST_FILES = 4096  # read to decide the encoding of a corpus, evenly spread over it
_EVIDENCE = 1 << 16  # bytes that are compared in all candidate encodings

_MARKED = ("utf-16", "utf-32")  # encodings in which a mark tells the order of the bytes
# Control characters that separate: spaces are made of them, as of line breaks.
_SEPARATORS = re.compile("[\x0b\x0c\x1c-\x1f\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")


class UndecodableError(ValueError):
    """Bytes that are not text in the encoding of their corpus; the message is the reason."""


class CorpusText:
    """Decodes the text files of one corpus.

    A byte order mark decides for its file, then UTF-8 if the file is. All other text of the
    corpus is in one encoding, which the text of the corpus as a whole decides.

    Args:
        title: of the corpus, for messages.
        encoding: given in the job file; then all text without a byte order mark is in it.
        files: all text files of the corpus; called when the first text is not UTF-8.
        korean: the corpus is Korean, whatever its letters.
    """

    def __init__(
        self,
        title: str,
        encoding: str | None,
        files: Callable[[], Iterable[Path]],
        *,
        korean: bool = False,
    ) -> None:
        self._title = title
        self._given = encoding
        self._files = files
        self._korean = korean
        self._decided: TextEncoding | None = None
        if encoding is not None:
            self._decided = TextEncoding(encoding, "set in the job file")

    def decide(self) -> None:
        """Decide now whether any text of the corpus is not UTF-8, and its encoding.

        Raises:
            UsageError: most of its text is not UTF-8, and does not tell what else it is.
        """
        if self._decided is None:
            paths = list(self._files())
            paths = paths[:: max(1, len(paths) // _MOST_FILES)]
            foreign = _evidence(paths)
            if foreign:
                self._choose(foreign, most=len(foreign) * 2 >= len(paths))

    def _legacy(self, data: bytes = b"") -> str:
        """The encoding of text that is not UTF-8 and has no byte order mark, such as `data`."""
        self.decide()
        if self._decided is None:
            self._choose([[data[:_EVIDENCE]]], most=False)
        assert self._decided is not None
        return self._decided.name

    def _choose(self, foreign: Sequence[Sequence[bytes]], *, most: bool) -> None:
        """Decide from the pieces of each file that is not UTF-8; `most`: of the corpus's files."""
        pieces = [piece for file in foreign for piece in file]
        try:
            name = choose(pieces, KOREAN if self._korean else CANDIDATES)
        except AmbiguousEncodingError as error:
            if most and not self._korean:
                raise UsageError(
                    f"corpus `{self._title}`: its text {error}; set `encoding` of the corpus "
                    "in the job file, such as `encoding: cp949`, or save the text as UTF-8"
                ) from error
            # Some damaged files: each is rejected when its turn comes.
            name = KOREAN[0] if self._korean else "utf-8"
        self._decided = TextEncoding(name, "detected")

    def records(self) -> Iterator[TextEncoding]:
        """What has been decided; nothing if all text read so far is UTF-8 or has a mark."""
        if self._decided is not None:
            yield self._decided

    def decode(self, data: bytes) -> tuple[str, str]:
        """The text of a whole file and the name of its encoding.

        Raises:
            UndecodableError: it is not text in that encoding.
            UsageError: the encoding of the corpus cannot be decided.
        """
        encoding = mark_of(data) or self._encoding_of(data)
        try:
            return data.decode(encoding), encoding
        except UnicodeDecodeError as error:
            byte = f"byte {data[error.start]:#04x} at {error.start}"
            raise UndecodableError(f"not text in {encoding} ({byte})") from error
        except UnicodeError as error:  # of codecs that do not say where
            raise UndecodableError(f"not text in {encoding} ({error})") from error

    def _encoding_of(self, data: bytes) -> str:
        if self._given in _MARKED:
            raise UndecodableError(_no_mark(self._given))
        if self._given is not None:
            return self._given
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            return self._legacy(data)
        if text.isascii() and "\0" not in text:
            return "utf-8"
        if "\0" in text:
            return self._legacy(data)
        korean = self._korean or (self._decided is not None and self._decided.name == "cp949")
        return "cp949" if korean and _is_korean(text, data) else "utf-8"

    def read(self, path: Path | str) -> tuple[str, str]:
        """`(text_raw, encoding)` of a transcript file, without surrounding white space.

        Raises:
            UndecodableError: if the file is not text.
            OSError: if the file cannot be read.
        """
        with open(path, "rb", buffering=0) as stream:  # noqa: PTH123, once per clip
            text, encoding = self.decode(stream.read())
        return text.strip().strip("\x1a\ufeff").strip(), encoding

    def encoding_of_table(self, path: Path) -> str:
        """The encoding of a table, most of whose lines are text in it.

        Raises:
            UsageError: the encoding of the corpus cannot be decided.
        """
        with path.open("rb") as stream:
            mark = mark_of(stream.read(4))
            if mark is not None:
                return mark
            if self._given in _MARKED:
                raise UsageError(f"corpus `{self._title}`: {path.name} {_no_mark(self._given)}")
            if self._given is not None:
                return self._given
            stream.seek(0)
            letters = utf8 = zeros = size = 0
            for line in stream:
                size += len(line)
                if line.isascii():
                    zeros += line.count(b"\0")
                    continue
                letters += 1
                utf8 += _is_utf8(line)
                zeros += line.count(b"\0")
        # A table in UTF-16 has a zero byte for each Latin letter; a stray one is a damaged row.
        if zeros * 20 > size or (letters and utf8 * 2 < letters):
            return self._legacy()
        return "utf-8"


def _no_mark(encoding: str) -> str:
    return (
        f"has no byte order mark, which `encoding: {encoding}` needs; set `encoding: {encoding}-le`"
        f" or `{encoding}-be`"
    )


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_korean(text: str, data: bytes) -> bool:
    """Whether bytes that are valid UTF-8 are a few Korean words in CP949.

    `카` is C4 AB, which UTF-8 reads as `ī`. Hangul never takes two bytes in UTF-8, so if UTF-8
    gives only two-byte letters and CP949 gives Hangul, CP949 is right.
    """
    if any(character > "\u07ff" for character in text):
        return False
    try:
        return any("가" <= character <= "힣" for character in data.decode("cp949"))
    except UnicodeDecodeError:
        return False


def _evidence(paths: Sequence[Path]) -> list[list[bytes]]:
    """Lines that are not UTF-8 of each of these files that has any, about 64 KiB together."""
    share = max(512, _EVIDENCE // max(1, len(paths)))
    files = []
    for path in paths:
        try:
            with path.open("rb") as stream:
                lines = _foreign_lines(stream, share)
        except OSError:  # reported when the file's own turn comes
            continue
        if lines:
            files.append(lines)
    return files


def _foreign_lines(stream: BinaryIO, share: int) -> list[bytes]:
    """Lines that are not UTF-8, thinned evenly; of a file with zero bytes its start, whole."""
    start = stream.read(share)
    if mark_of(start):
        return []
    if start.count(b"\0") * 20 > len(start):
        return [start[: len(start) - len(start) % 4]]
    stream.seek(0)
    kept: list[bytes] = []
    seen, step, size = 0, 1, 0
    for line in stream:
        if line.isascii() or _is_utf8(line):
            continue
        if seen % step == 0:
            kept.append(line.rstrip(b"\r\n")[:share])
            size += len(kept[-1])
        seen += 1
        if size > 2 * share and len(kept) > 1:
            kept, step = kept[::2], 2 * step
            size = sum(map(len, kept))
    return kept


def tidy(text: str) -> str:
    """NFC with single spaces, without characters that show and mean nothing."""
    return " ".join(unicodedata.normalize("NFC", visible(text, breaks=True)).split())


def control_characters(text: str) -> list[str]:
    """Control characters that are no white space, and parts of surrogate pairs.

    They come of a file that is damaged or read in a wrong encoding.
    """
    return [] if text.isprintable() else sorted(set(_CONTROL.findall(text)))


def without_separators(text: str) -> str:
    """The text with spaces for control characters that separate, such as a vertical tab."""
    return text if text.isprintable() else _SEPARATORS.sub(" ", text)


def code_points(characters: list[str]) -> str:
    """The first three characters as `U+0007, U+001B`."""
    return ", ".join(f"U+{ord(character):04X}" for character in characters[:3])


def normal_name(name: str) -> str:
    """A name of a person, session, dialogue or label: NFKC, visible characters, single spaces."""
    if name.isascii():
        return " ".join(name.split())
    return " ".join(unicodedata.normalize("NFKC", visible(name)).split())


def normal_id(name: str) -> str:
    """An utterance's id. NFC only: files of one folder may differ in what NFKC makes equal."""
    return name.strip() if name.isascii() else unicodedata.normalize("NFC", visible(name)).strip()


def clean(text_raw: str) -> str:
    """Remove KEMDy's tags from a transcript and `tidy` it; the result may be empty."""
    return tidy(_SIGN_TAG.sub("", _LETTER_TAG.sub(" ", text_raw)))


def normal_text(text: str) -> str:
    """Key for comparing transcripts: spacing, case and Unicode form do not matter."""
    return tidy(text).casefold()
