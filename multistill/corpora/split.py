"""Assignment of groups to train, valid and test, and to folds; stable when a corpus grows.

The part of a group (a session, a speaker) depends only on the seed and the group's name: any
rule that considers the other groups moves some of them when a corpus grows. Each group has a
fixed position in [0, 1); positions below `test` are test, the next `valid` are valid, the rest
is train.

Numbered groups, such as sessions, take their positions from a Weyl sequence: number times the
golden ratio, shifted by a seeded hash of the rest of the name. Consecutive numbers are then
spread evenly: of 12 sessions at 20 %, test gets 2 or 3, where independent hashes give it none
for one seed in fifteen (three-distance theorem; Knuth, TAOCP 3, 6.4).
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
from multistill.corpora.manifest import hash_strings
from multistill.corpora.text import normal_text
from multistill.errors import UsageError

PARTS = ("train", "valid", "test")
_GOLDEN = 0x9E3779B97F4A7C15
_NUMBERED = re.compile(r"(.*\D|)(\d+)(\D*)", re.DOTALL)
PART_ALIASES = {
    "train": "train", "training": "train",
    "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
"""Names of the parts in corpora's own split columns."""


def hash64(*parts: object) -> int:
    """A 64-bit hash of the values, the same in every process."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def position(name: str, seed: int) -> float:
    """Position of a group in [0, 1), independent of all other groups."""
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return hash64(seed, name) / 2**64
    before, number, after = match.groups()
    return ((hash64(seed, before, after) + int(number) * _GOLDEN) % 2**64) / 2**64


@dataclass(frozen=True)
class Parts:
    """The part of each group; `reassigned` names groups whose position is in another part."""

    part: Mapping[str, str]
    reassigned: tuple[str, ...] = ()


def assign_parts(groups: Iterable[str], test: float, valid: float, seed: int) -> Parts:
    """Assign every group to a part.

    If no group has a position in a requested part, the nearest group is reassigned to it and
    reported; only such a group can move when the corpus grows.

    Raises:
        UsageError: if there are fewer groups than parts.
    """
    positions = {name: position(name, seed) for name in set(groups)}
    requested = [part for part, share in (("test", test), ("valid", valid)) if share > 0]
    if len(positions) < len(requested) + 1:
        raise UsageError(
            f"{' and '.join([*requested, 'train'])} need at least {len(requested) + 1} groups and "
            f"there are {len(positions)}; add data or raise the corpora's `limit`, or split single "
            "utterances with `split: {by: random, allow_leak: true}`, and every table will say "
            "LEAKY SPLIT"
        )
    part = {
        name: "test" if x < test else "valid" if x < test + valid else "train"
        for name, x in positions.items()
    }
    reassigned = []
    for missing in [*requested, "train"]:
        if missing in part.values():
            continue
        edge = {"test": 0.0, "valid": test, "train": 1.0}[missing]
        parts = list(part.values())
        # Preferably from train, and never the last group of a part.
        free = [name for name in positions if parts.count(part[name]) > 1]
        best = min(
            free, key=lambda name: (part[name] != "train", abs(positions[name] - edge), name)
        )
        part[best] = missing
        reassigned.append(best)
    return Parts(part, tuple(reassigned))


def assign_folds(part: Mapping[str, str], folds: int, seed: int) -> dict[str, int]:
    """Assign every group outside test to a fold: first train's groups evenly, then valid's.

    Groups are ordered by a seeded hash. Unlike parts, folds are balanced in size, so a group
    may change its fold when the corpus grows.
    """
    order = sorted(
        (name for name, where in part.items() if where != "test"),
        key=lambda name: (part[name] != "train", hash64(seed, "fold", name)),
    )
    return {name: index % folds for index, name in enumerate(order)}


@dataclass(frozen=True)
class Split:
    """Per row: index into `PARTS`, [N], and fold, [N] (-1 for test); `facts` is for the report."""

    part: npt.NDArray[np.int8]
    fold: npt.NDArray[np.int32]
    facts: dict[str, Any]


def split_rows(
    table: pa.Table, config: SplitConfig, given: Sequence[str | None] | None = None
) -> Split:
    """Split the rows of a manifest (`utterance_id`, `session`, `speaker`).

    Args:
        given: the corpora's own split of each row, for `by: column`.

    Raises:
        UsageError: if the rows cannot be split as configured.
    """
    if config.by == "random":
        part, fold = _by_row(table, config)
        facts: dict[str, Any] = {"by": "random", "reassigned": []}
    elif config.by == "column":
        part, fold, facts = _by_column(table, config, given)
    else:
        codes, names = _groups(table, config.by)
        parts = _assign(config, names)
        folds = assign_folds(parts.part, config.folds, config.seed)
        part = np.array([PARTS.index(parts.part[name]) for name in names], np.int8)[codes]
        fold = np.array([folds.get(name, -1) for name in names], np.int32)[codes]
        facts = {
            "by": config.by,
            "groups": {p: sum(w == p for w in parts.part.values()) for p in PARTS},
            "reassigned": list(parts.reassigned),
        }
    return Split(part, np.where(part == 2, -1, fold).astype(np.int32), facts)


def _groups(table: pa.Table, by: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Each row's group as an index, [N], and the groups' names.

    By session, a group is a session. By speaker, a group is a connected component of speakers
    and sessions, so that dialogues stay in one part. It is named after its first session in
    natural order, even if it has a single speaker: the name then stays the same when speakers
    join its sessions, and when its speakers appear in sessions that sort later. No rule can
    guarantee more. Of a session with A and one with B, which the other speaker may join next,
    the group's name must not change, so it is the session's; and if one speaker links two
    sessions, one of the two names must be dropped, as whenever two groups become one.
    """
    codes, encoded = _codes(table, by)
    names = encoded.to_pylist()
    if "" in names:
        row = int(np.flatnonzero(codes == names.index(""))[0])
        raise UsageError(
            f"split.by: {by} needs a {by} for every utterance, and "
            f"{table['utterance_id'][row].as_py()} has none; split by another key"
        )
    if by == "session":
        return codes, names
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    session_codes, encoded = _codes(table, "session")
    sessions = encoded.to_pylist()
    pairs = np.unique(np.stack([codes, session_codes]), axis=1)
    pairs = pairs[:, np.array([bool(sessions[code]) for code in pairs[1]], bool)]
    size = len(names) + len(sessions)
    links = coo_array((np.ones(pairs.shape[1]), (pairs[0], len(names) + pairs[1])), (size, size))
    count, component = connected_components(links, directed=False)
    group_speakers: list[list[str]] = [[] for _ in range(count)]
    group_sessions: list[list[str]] = [[] for _ in range(count)]
    for name, group in zip(names, component[: len(names)], strict=True):
        group_speakers[group].append(name)
    for name, group in zip(sessions, component[len(names) :], strict=True):
        group_sessions[group].append(name)
    # A speaker without a session is a group, named after the speaker.
    group_names = [
        min(in_sessions or speakers, key=_natural_key)
        for speakers, in_sessions in zip(group_speakers, group_sessions, strict=True)
        if speakers
    ]
    # Components without a speaker (the empty session) are no groups: number the others.
    with_speakers = [group for group in range(count) if group_speakers[group]]
    index = {group: i for i, group in enumerate(with_speakers)}
    of_speaker = np.array([index[group] for group in component[: len(names)]], np.int64)
    return of_speaker[codes], group_names


def _natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts `day9` before `day10`: later sessions should sort later."""
    pieces = re.split(r"(\d+)", name)
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in pieces], name


def _by_row(
    table: pa.Table, config: SplitConfig
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """Each utterance on its own, as in published work; speakers are then in several parts."""
    part = np.zeros(len(table), np.int8)
    fold = np.zeros(len(table), np.int32)
    row = 0
    for batch in table.select(["utterance_id"]).to_batches(max_chunksize=65_536):
        for name in batch.column(0).to_pylist():
            x = hash64(config.seed, name) / 2**64
            part[row] = 2 if x < config.test else x < config.test + config.valid
            fold[row] = hash64(config.seed, "fold", name) % config.folds
            row += 1
    required = [name for name in PARTS if name != "valid" or config.valid > 0]
    advice = "add data, raise split.test or split.valid, or use another split.seed"
    _require_rows(part, required, "random", advice)
    return part, fold


def _require_rows(
    part: npt.NDArray[np.int8], required: Sequence[str], by: str, advice: str
) -> None:
    """Refuse empty parts: training, the search or the evaluation would fail later."""
    rows = np.bincount(part, minlength=len(PARTS))
    if empty := [name for name in required if not rows[PARTS.index(name)]]:
        raise UsageError(
            f"split.by: {by} puts none of the {len(part)} utterances into {' and '.join(empty)}; "
            + advice
        )


def _assign(config: SplitConfig, names: Iterable[str]) -> Parts:
    try:
        return assign_parts(names, config.test, config.valid, config.seed)
    except UsageError as error:
        raise UsageError(f"split.by: {config.by}: {error}") from error


def _by_column(
    table: pa.Table, config: SplitConfig, given: Sequence[str | None] | None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32], dict[str, Any]]:
    """The corpora's own split; if it has no valid part, that is taken from train by session."""
    names = [PART_ALIASES.get((value or "").strip().casefold()) for value in given or []]
    if len(names) != len(table) or None in names:
        row = names.index(None) if None in names else 0
        value = given[row] if given else None
        raise UsageError(
            f"split.by: column: {table['utterance_id'][row].as_py()} has "
            f"`{'' if value is None else value}` where train, valid or test is required; "
            "fill the split column, or split by session"
        )
    part = np.array([PARTS.index(str(name)) for name in names], np.int8)
    advice = "assign some rows to it in the split column, or split by session"
    _require_rows(part, ("train", "test"), "column", advice)
    codes, encoded = _codes(table, "session")
    sessions = encoded.to_pylist()
    facts: dict[str, Any] = {"by": "column", "reassigned": []}
    test_codes = set(np.unique(codes[part == 2]).tolist())
    if not (part == 1).any() and config.valid > 0:
        outside_test = [name for code, name in enumerate(sessions) if code not in test_codes]
        parts = _assign(config.model_copy(update={"test": 0.0}), outside_test)
        in_valid = np.array([parts.part.get(name) == "valid" for name in sessions])[codes]
        part = np.where(in_valid & (part == 0), 1, part).astype(np.int8)
        facts |= {"valid_from_train": True, "reassigned": list(parts.reassigned)}
    advice = "assign some rows to it in the split column, or set split.valid to take it from train"
    _require_rows(part, ("valid",), "column", advice)
    session_part = {
        name: "valid" if (part[codes == code] == 1).all() else "train"
        for code, name in enumerate(sessions)
    }
    folds = assign_folds(session_part, config.folds, config.seed)
    return part, np.array([folds[name] for name in sessions], np.int32)[codes], facts


def _codes(table: pa.Table, column: str) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """A column as indices, [N], into its distinct values."""
    encoded = table[column].dictionary_encode()  # one dictionary over all chunks
    if not encoded.num_chunks:
        return np.zeros(0, np.int64), pa.array([], pa.string())
    codes = [chunk.indices.to_numpy() for chunk in encoded.chunks]
    return np.concatenate(codes).astype(np.int64), encoded.chunk(0).dictionary


def leaks(table: pa.Table, part: npt.NDArray[np.int8]) -> dict[str, Any]:
    """Count what occurs in more than one part of the split.

    sessions, speakers: number that occur in more than one part (refused unless allowed).
    transcripts, recordings: number of texts (compared by `normal_text`, as in the evaluation)
    and recordings (compared by `audio_digest`) of test that also occur in train or valid;
    `transcript_rows` and `recording_rows` are the test utterances concerned.
    """
    leaked: dict[str, Any] = {}
    for name in ("session", "speaker"):
        codes, groups = _codes(table, name)
        in_part = np.zeros((len(groups), len(PARTS)), bool)
        in_part[codes, part] = True
        several = groups.filter(pa.array(in_part.sum(axis=1) > 1)).to_pylist()
        several = sorted(group for group in several if group)
        leaked[f"{name}s"] = len(several)
        leaked[f"{name}s_named"] = several[:10]
    for name, column in (("transcript", "text"), ("recording", "audio_digest")):
        hashes = hash_strings(table[column], normal_text if column == "text" else str)
        present = pc.binary_length(table[column]).to_numpy() > 0
        both = np.intersect1d(hashes[present & (part == 2)], hashes[present & (part != 2)])
        leaked[f"{name}s"] = len(both)
        leaked[f"{name}_rows"] = int((present & (part == 2) & np.isin(hashes, both)).sum())
    return leaked


def refuse_leaks(leaked: Mapping[str, Any], config: SplitConfig) -> None:
    """Refuse a split with a session or a speaker in several parts.

    Args:
        leaked: the result of `leaks`.

    Raises:
        UsageError: unless `split.allow_leak` is set.
    """
    if config.allow_leak:
        return
    for name in ("sessions", "speakers"):
        if leaked[name]:
            examples = ", ".join(leaked[f"{name}_named"][:3])
            raise UsageError(
                f"split.by: {config.by} puts {leaked[name]} {name} into several parts "
                f"({examples}); use `by: speaker`, which keeps speakers and their sessions "
                "together, or set split.allow_leak: true and every table will say LEAKY SPLIT"
            )
