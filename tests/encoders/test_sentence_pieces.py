"""The reader of SentencePiece models: every table read, every damage refused, the longest match."""

from __future__ import annotations

import contextlib
import struct

import pytest
from encoders.test_onnx_tensors import piece, varint, whole
from hypothesis import given
from hypothesis import strategies as st

from multistill.encoders.protobuf import InvalidMessageError
from multistill.encoders.sentence_pieces import SentencePieces, read_model

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
CYCLE = [97 << 10 | 97 if byte == 97 else 0 for byte in range(256)]
"""Units of a trie in which "a" leads back to the first node."""
TABLES = st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=12)


def table(replacements: dict[str, str]) -> bytes:
    """A double array in which every node has 256 units of its own, and the replacements."""
    blocks = [[0] * 256]
    texts = b""

    def write(block: int, place: int, label: int, keys: dict[bytes, str]) -> None:
        nonlocal texts
        child = len(blocks)
        blocks.append([0xFFFFFFFF] * 256)
        offset = (256 * block + place) ^ (256 * child)
        blocks[block][place] = offset << 10 | label | (0x100 if b"" in keys else 0)
        if b"" in keys:
            blocks[child][0] = 1 << 31 | len(texts)
            texts += keys[b""].encode() + b"\0"
        for byte in {key[0] for key in keys if key}:
            below = {key[1:]: text for key, text in keys.items() if key[:1] == bytes([byte])}
            write(child, byte, byte, below)

    write(0, 0, 0, {key.encode(): text for key, text in replacements.items()})
    units = [unit for block in blocks for unit in block]
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + texts


def model(pieces: dict[str, float], replacements: dict[str, str]) -> bytes:
    """With unknown, start and end in front of the pieces."""
    special = b"".join(
        piece(1, piece(1, name.encode()) + whole(3, kind))
        for name, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3))
    )
    normal = b"".join(
        piece(1, piece(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score))
        for text, score in pieces.items()
    )
    return special + normal + piece(3, piece(1, b"nmt_nfkc") + piece(2, table(replacements)))


def pieces_of(pieces: dict[str, float], replacements: dict[str, str]) -> SentencePieces:
    return SentencePieces(**read_model(model(pieces, replacements)))


@given(TABLES)
def test_every_replacement_is_read(replacements: dict[str, str]) -> None:
    found = read_model(model({"a": -1.5}, replacements))
    assert found["replacements"] == replacements
    assert found["pieces"] == [None, None, None, ("a", -1.5)]


@given(st.data())
def test_a_damaged_model_is_refused_or_read_and_nothing_else(data: st.DataObject) -> None:
    content = bytearray(model({"a": -1.0, "한": -2.0}, {"A": "a", "\u1112\u1161": "하"}))
    # The units of blocks that lead nowhere are left out of what is damaged.
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    for damaged in (content, content[:end]):
        with contextlib.suppress(InvalidMessageError):
            read_model(bytes(damaged))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "numbers"),
        (struct.pack("<I", 0), "has no trie"),
        (struct.pack("<II", 8, 0), "numbers"),
        (struct.pack("<I256I", 1024, *CYCLE), "cycle"),
        (table({"a": "b"})[:-1], "outside of the table"),
        (table({"a": "b"})[:-2] + b"\xff\0", "not text"),
    ],
)
def test_a_damaged_table_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessageError, match=reason):
        read_model(piece(3, piece(2, content)))


def test_the_longest_match_is_replaced() -> None:
    tokenizer = pieces_of({"a": -1.0}, {"a": "1", "abc": "3", "\t": " ", "\r": ""})
    assert tokenizer.normalise("abcab") == "▁31b"
    assert tokenizer.normalise("  a\t\t a \r ") == "▁1▁1"
    assert tokenizer.normalise(" \t\r") == ""


def test_the_likeliest_pieces_are_chosen_and_unknown_characters_are_one_token() -> None:
    tokenizer = pieces_of({"▁": -2.0, "▁ab": -3.0, "a": -1.0, "b": -1.0, "c": -1.0}, {})
    assert tokenizer.ids("ab") == [4]
    assert tokenizer.ids("ba") == [3, 6, 5]
    assert tokenizer.ids("axyzc") == [3, 5, 0, 7]
    # Start and end of a text cannot be written.
    assert set(tokenizer.ids("<s>c</s>")) == {3, 0, 7}
    assert tokenizer.ids(" ") == []


@pytest.mark.parametrize("letters", [1, 5, 6, 7, 500])
def test_a_long_text_is_cut_and_keeps_start_and_end(letters: int) -> None:
    tokenizer = pieces_of({"▁": -2.0, "a": -1.0}, {})
    ids, cut = tokenizer("a" * letters, 8)
    assert (ids[0], ids[-1], len(ids)) == (1, 2, min(8, letters + 3))
    assert cut == (letters > 5)
