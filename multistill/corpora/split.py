"""Who is trained on and who is tested on: a rule of the group's own name, so it is stable.

Whether a group (a session, a speaker) is tested on may depend on nothing but the seed and
its name: any rule that looks at the other groups moves somebody when a corpus grows. A
group therefore has a fixed place in [0, 1), and test is the places below `test`, valid the
next `valid`, train the rest.

Groups that are numbered, as sessions are, take the places of a Weyl sequence: number times
the golden ratio, shifted by a seeded hash of the rest of the name. Any run of numbers is
then spread evenly, so 12 sessions at 20 % give 2 or 3 to test, where independent hashes
give none at all once in fifteen seeds (three-distance theorem; Knuth, TAOCP 3, 6.4).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from multistill.config import SplitConfig
from multistill.corpora.manifest import keys
from multistill.corpora.text import normal_text
from multistill.errors import UsageError

PARTS = ("train", "valid", "test")
_GOLDEN = 0x9E3779B97F4A7C15
_NUMBERED = re.compile(r"(.*\D|)(\d+)(\D*)", re.DOTALL)
ALIASES = {
    "train": "train", "training": "train",
    "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
"""What corpora call the parts in a split column of theirs."""


def hash64(*parts: object) -> int:
    """A 64-bit number that depends on these values only."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def position(name: str, seed: int) -> float:
    """The place of a group in [0, 1); needs to know no other group."""
    found = _NUMBERED.fullmatch(name)
    if found is None:
        return hash64(seed, name) / 2**64
    before, number, after = found.groups()
    return ((hash64(seed, before, after) + int(number) * _GOLDEN) % 2**64) / 2**64


@dataclass(frozen=True)
class Parts:
    """Which part each group is in. `reassigned` names groups that chance had put elsewhere."""

    part: Mapping[str, str]
    reassigned: tuple[str, ...] = ()


def assign(groups: Iterable[str], test: float, valid: float, seed: int) -> Parts:
    """A part for every group.

    Where a part that was asked for gets no group by its place, the nearest group is
    reassigned; that group alone may move back when the corpus grows, and is reported.

    Raises:
        UsageError: where there are fewer groups than parts.
    """
    places = {name: position(name, seed) for name in set(groups)}
    wanted = [part for part, share in (("test", test), ("valid", valid)) if share > 0]
    if len(places) < len(wanted) + 1:
        raise UsageError(
            f"{' and '.join([*wanted, 'train'])} need at least {len(wanted) + 1} groups and there "
            f"are {len(places)}; set split.{wanted[-1]}: 0, add data, or raise corpora's `limit`"
        )
    part = {
        name: "test" if at < test else "valid" if at < test + valid else "train"
        for name, at in places.items()
    }
    reassigned = []
    for missing in [*wanted, "train"]:
        if missing in part.values():
            continue
        edge = {"test": 0.0, "valid": test, "train": 1.0}[missing]
        held = list(part.values())
        # From train if it can, and never the last group of a part.
        free = [name for name in places if held.count(part[name]) > 1]
        best = min(free, key=lambda name: (part[name] != "train", abs(places[name] - edge), name))
        part[best] = missing
        reassigned.append(best)
    return Parts(part, tuple(reassigned))


def deal_folds(part: Mapping[str, str], folds: int, seed: int) -> dict[str, int]:
    """A fold for every group outside test: train's groups evenly first, then valid's.

    The order is that of a seeded hash. Unlike the parts, folds are dealt for even size, so
    a group may change its fold when the corpus grows.
    """
    order = sorted(
        (name for name, where in part.items() if where != "test"),
        key=lambda name: (part[name] != "train", hash64(seed, "fold", name)),
    )
    return {name: at % folds for at, name in enumerate(order)}


@dataclass(frozen=True)
class Split:
    """Row by row: index into `PARTS`, and fold (-1 for test). `facts` is for the report."""

    part: npt.NDArray[np.int8]
    fold: npt.NDArray[np.int32]
    facts: dict[str, Any]


def split_rows(
    table: pa.Table, config: SplitConfig, seed: int, given: Sequence[str | None] | None = None
) -> Split:
    """Split the rows of a manifest (`utterance_id`, `session`, `speaker`).

    Args:
        given: with `by: column`, what the corpora say of each row.
    Raises:
        UsageError: where the split cannot be made, or leaks and `allow_leak` is not set.
    """
    if config.by == "random":
        part, fold = _by_row(table, config, seed)
        facts: dict[str, Any] = {"by": "random", "reassigned": []}
    elif config.by == "column":
        part, fold, facts = _by_column(table, config, seed, given)
    else:
        codes, names = _groups(table, config.by)
        parts = _assigned(config, names, seed)
        folds = deal_folds(parts.part, config.folds, seed)
        part = np.array([PARTS.index(parts.part[name]) for name in names], np.int8)[codes]
        fold = np.array([folds.get(name, -1) for name in names], np.int32)[codes]
        facts = {
            "by": config.by,
            "groups": {p: sum(w == p for w in parts.part.values()) for p in PARTS},
            "reassigned": list(parts.reassigned),
        }
    return Split(part, np.where(part == 2, -1, fold).astype(np.int32), facts)


def _groups(table: pa.Table, by: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Each row's group as a number, and the groups' names; a group never comes apart.

    By session, a group is a session. By speaker, a group is a speaker with all whom some
    session links to them, so that dialogues do not stand on both sides. It is called after
    its first session, numbers taken as numbers, however few its speakers are: so the name
    stays when people join its sessions, and when its people come back in sessions that sort
    later. No rule promises more. Of a session of A and one of B, to which the other may come
    next, the name must be the same, so it is the session's; and where one person links two
    sessions, one of their names must give way, as it must where two groups become one.
    """
    codes, told = _coded(table, by)
    names = told.to_pylist()
    if "" in names:
        at = int(np.flatnonzero(codes == names.index(""))[0])
        raise UsageError(
            f"split.by: {by} needs a {by} for every utterance, and "
            f"{table['utterance_id'][at].as_py()} has none; split by another key"
        )
    if by == "session":
        return codes, names
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    session, found = _coded(table, "session")
    sessions = found.to_pylist()
    pairs = np.unique(np.stack([codes, session]), axis=1)
    pairs = pairs[:, np.array([bool(sessions[at]) for at in pairs[1]], bool)]
    size = len(names) + len(sessions)
    links = coo_array((np.ones(pairs.shape[1]), (pairs[0], len(names) + pairs[1])), (size, size))
    count, component = connected_components(links, directed=False)
    members: list[list[str]] = [[] for _ in range(count)]
    places: list[list[str]] = [[] for _ in range(count)]
    for name, at in zip(names, component[: len(names)], strict=True):
        members[at].append(name)
    for name, at in zip(sessions, component[len(names) :], strict=True):
        places[at].append(name)
    # Who is in no session is alone, and called by their own name.
    called = [
        min(where or people, key=_natural)
        for people, where in zip(members, places, strict=True)
        if people
    ]
    number = {at: i for i, at in enumerate(at for at in range(count) if members[at])}
    mine = np.array([number[at] for at in component[: len(names)]], np.int64)
    return mine[codes], called


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts `day9` before `day10`: sessions that come later should sort later."""
    pieces = re.split(r"(\d+)", name)
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in pieces], name


def _by_row(
    table: pa.Table, config: SplitConfig, seed: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """Each utterance on its own, as published; speakers then stand on both sides."""
    part = np.zeros(len(table), np.int8)
    fold = np.zeros(len(table), np.int32)
    at = 0
    for batch in table.select(["utterance_id"]).to_batches(max_chunksize=65_536):
        for name in batch.column(0).to_pylist():
            where = hash64(seed, name) / 2**64
            part[at] = 2 if where < config.test else where < config.test + config.valid
            fold[at] = hash64(seed, "fold", name) % config.folds
            at += 1
    wanted = [name for name in PARTS if name != "valid" or config.valid > 0]
    _need(part, wanted, "random", "add data, ask for larger shares, or take another `seed`")
    return part, fold


def _need(part: npt.NDArray[np.int8], wanted: Sequence[str], by: str, way_out: str) -> None:
    """Refuse parts without a row: training, the search or the judgement would fail later."""
    rows = np.bincount(part, minlength=len(PARTS))
    if empty := [name for name in wanted if not rows[PARTS.index(name)]]:
        raise UsageError(
            f"split.by: {by} puts none of the {len(part)} utterances into {' and '.join(empty)}; "
            + way_out
        )


def _assigned(config: SplitConfig, names: Iterable[str], seed: int) -> Parts:
    try:
        return assign(names, config.test, config.valid, seed)
    except UsageError as error:
        raise UsageError(f"split.by: {config.by}: {error}") from error


def _by_column(
    table: pa.Table, config: SplitConfig, seed: int, given: Sequence[str | None] | None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32], dict[str, Any]]:
    """The corpora's own split; valid is cut from train by session where they have none."""
    found = [ALIASES.get((value or "").strip().casefold()) for value in given or []]
    if len(found) != len(table) or None in found:
        at = found.index(None) if None in found else 0
        value = given[at] if given else None
        raise UsageError(
            f"split.by: column: {table['utterance_id'][at].as_py()} says "
            f"`{'' if value is None else value}` where train, valid or test is needed; "
            "fill the split column, or split by session"
        )
    part = np.array([PARTS.index(str(value)) for value in found], np.int8)
    way_out = "name some there in the split column, or split by session"
    _need(part, ("train", "test"), "column", way_out)
    codes, sessions = _coded(table, "session")
    names = sessions.to_pylist()
    facts: dict[str, Any] = {"by": "column", "reassigned": []}
    tested = set(np.unique(codes[part == 2]).tolist())
    if not (part == 1).any() and config.valid > 0:
        open_groups = [name for code, name in enumerate(names) if code not in tested]
        parts = _assigned(config.model_copy(update={"test": 0.0}), open_groups, seed)
        held = np.array([parts.part.get(name) == "valid" for name in names])[codes]
        part = np.where(held & (part == 0), 1, part).astype(np.int8)
        facts |= {"valid_from_train": True, "reassigned": list(parts.reassigned)}
    way_out = "name some there in the split column, or set split.valid to cut it from train"
    _need(part, ("valid",), "column", way_out)
    main = {
        name: "valid" if (part[codes == code] == 1).all() else "train"
        for code, name in enumerate(names)
    }
    folds = deal_folds(main, config.folds, seed)
    return part, np.array([folds[name] for name in names], np.int32)[codes], facts


def _coded(table: pa.Table, column: str) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Each row's group as a number, and the groups' names."""
    encoded = table[column].dictionary_encode()  # one dictionary over all chunks
    if not encoded.num_chunks:
        return np.zeros(0, np.int64), pa.array([], pa.string())
    codes = [chunk.indices.to_numpy() for chunk in encoded.chunks]
    return np.concatenate(codes).astype(np.int64), encoded.chunk(0).dictionary


def leaks(table: pa.Table, part: npt.NDArray[np.int8]) -> dict[str, Any]:
    """What stands on more than one side of the split.

    sessions, speakers: how many stand in more than one part (refused, unless allowed).
    transcripts, recordings: how many texts (the words of `normal_text`, as `evaluate` compares
    them) and recordings (by `audio_digest`: size, beginning, middle and end) of test also
    stand in train or valid; `transcript_rows` is the test utterances they touch.
    """
    found: dict[str, Any] = {}
    for name in ("session", "speaker"):
        codes, told = _coded(table, name)
        sides = np.zeros((len(told), len(PARTS)), bool)
        sides[codes, part] = True
        several = told.filter(pa.array(sides.sum(axis=1) > 1)).to_pylist()
        several = sorted(group for group in several if group)
        found[f"{name}s"] = len(several)
        found[f"{name}s_named"] = several[:10]
    for name, column in (("transcript", "text"), ("recording", "audio_digest")):
        code = keys(table[column], normal_text if column == "text" else str)
        told = pc.binary_length(table[column]).to_numpy() > 0
        both = np.intersect1d(code[told & (part == 2)], code[told & (part != 2)])
        found[f"{name}s"] = len(both)
        found[f"{name}_rows"] = int((told & (part == 2) & np.isin(code, both)).sum())
    return found


def refuse_leaks(found: Mapping[str, Any], config: SplitConfig) -> None:
    """Refuse a split with a session or a speaker on both sides.

    Raises:
        UsageError: unless `split.allow_leak` is set.
    """
    if config.allow_leak:
        return
    for name in ("sessions", "speakers"):
        if found[name]:
            some = ", ".join(found[f"{name}_named"][:3])
            raise UsageError(
                f"split.by: {config.by} puts {found[name]} {name} on both sides ({some}); use "
                "`by: speaker`, which keeps speakers and their sessions together, or set "
                "split.allow_leak: true and every table will say LEAKY SPLIT"
            )
