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

from multistill.config import SplitConfig
from multistill.corpora.groups import Groups, codes_of, connected_groups, split_groups
from multistill.corpora.manifest import NOTHING, content_hashes
from multistill.corpora.rows import Columns, tables
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
    """How the rows are split.

    Attributes:
        part: index into `PARTS` of each row [N].
        fold: of each row [N]; -1 for test.
        groups: the unit that is kept together. It never spans parts, except by `column` and
            `random`, and never spans folds, except by `random`.
        facts: for the quality report.
    """

    part: npt.NDArray[np.int8]
    fold: npt.NDArray[np.int32]
    groups: Groups
    facts: dict[str, Any]


def split_rows(
    table: Columns, config: SplitConfig, given: Sequence[str | None] | None = None
) -> Split:
    """Split the rows of a manifest (`utterance_id`, `session`, `speaker`).

    Args:
        given: the corpora's own split of each row, for `by: column`.

    Raises:
        UsageError: if the rows cannot be split as configured.
    """
    if config.by == "random":
        groups = connected_groups(table)
        part, fold = _by_row(table, config)
        facts: dict[str, Any] = {"by": "random", "reassigned": []}
    elif config.by == "column":
        groups = connected_groups(table)
        part, fold, facts = _by_column(table, groups, config, given)
    else:
        groups = split_groups(table, config.by)
        codes, names = groups.codes, groups.names
        parts = _assign(config, names)
        folds = assign_folds(parts.part, config.folds, config.seed)
        part = np.array([PARTS.index(parts.part[name]) for name in names], np.int8)[codes]
        fold = np.array([folds.get(name, -1) for name in names], np.int32)[codes]
        facts = {
            "by": config.by,
            "groups": {p: sum(w == p for w in parts.part.values()) for p in PARTS},
            "reassigned": list(parts.reassigned),
        }
    return Split(part, np.where(part == 2, -1, fold).astype(np.int32), groups, facts)


def _by_row(
    table: Columns, config: SplitConfig
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """Each utterance on its own, as in published work; speakers are then in several parts."""
    part = np.zeros(len(table), np.int8)
    fold = np.zeros(len(table), np.int32)
    row = 0
    for batch in tables(table, ["utterance_id"]):
        for name in batch["utterance_id"].to_pylist():
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
    table: Columns, groups: Groups, config: SplitConfig, given: Sequence[str | None] | None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32], dict[str, Any]]:
    """The corpora's own split; if it has no valid part, groups of train become valid."""
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
    codes = groups.codes
    facts: dict[str, Any] = {"by": "column", "reassigned": []}
    if not (part == 1).any() and config.valid > 0:
        in_test = set(np.unique(codes[part == 2]).tolist())
        outside_test = [name for code, name in enumerate(groups.names) if code not in in_test]
        parts = _assign(config.model_copy(update={"test": 0.0}), outside_test)
        in_valid = np.array([parts.part.get(name) == "valid" for name in groups.names])[codes]
        part = np.where(in_valid & (part == 0), 1, part).astype(np.int8)
        facts |= {"valid_from_train": True, "reassigned": list(parts.reassigned)}
    advice = "assign some rows to it in the split column, or set split.valid to take it from train"
    _require_rows(part, ("valid",), "column", advice)
    has = np.zeros((len(PARTS), len(groups.names)), bool)
    has[part, codes] = True
    group_part = {
        name: "train" if train else "valid" if valid else "test"
        for name, train, valid in zip(groups.names, has[0], has[1], strict=True)
    }
    folds = assign_folds(group_part, config.folds, config.seed)
    return part, np.array([folds.get(name, -1) for name in groups.names], np.int32)[codes], facts


def leaks(table: Columns, part: npt.NDArray[np.int8]) -> dict[str, Any]:
    """Count what occurs in more than one part of the split; see `LeakCounter`."""
    return LeakCounter(table).count(part)


class LeakCounter:
    """Counts what occurs in more than one part, for any number of splits of the same rows.

    Transcripts and recordings are hashed once.

    sessions, speakers: number that occur in more than one part (refused unless allowed).
    transcripts, recordings: number of texts (compared by `normal_text`, as in the evaluation)
    and recordings (compared by `audio_digest`) of test that also occur in train or valid;
    `transcript_rows` and `recording_rows` are the test utterances concerned.
    """

    def __init__(self, table: Columns) -> None:
        self._groups = {name: codes_of(table, name) for name in ("session", "speaker")}
        self._contents = {
            "transcript": _content_codes(table, "text"),
            "recording": _content_codes(table, "audio_digest"),
        }

    def count(self, part: npt.NDArray[np.int8]) -> dict[str, Any]:
        """The counts of one split, `part` [N] as in `Split`."""
        leaked: dict[str, Any] = {}
        for name, (codes, groups) in self._groups.items():
            in_part = np.zeros((len(groups), len(PARTS)), bool)
            in_part[codes, part] = True
            several = groups.filter(pa.array(in_part.sum(axis=1) > 1)).to_pylist()
            several = sorted(group for group in several if group)
            leaked[f"{name}s"] = len(several)
            leaked[f"{name}s_named"] = several[:10]
        for name, (codes, present) in self._contents.items():
            test = part == PARTS.index("test")
            sides = np.zeros((codes.max(initial=-1) + 1, 2), bool)
            sides[codes[present], test[present].astype(int)] = True
            both = np.asarray(sides.all(axis=1))
            leaked[f"{name}s"] = int(both.sum())
            leaked[f"{name}_rows"] = int((present & test & both[codes]).sum())
        return leaked


def _content_codes(
    table: Columns, column: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Equal numbers [N] for equal values, and whether there is a value [N]."""
    hashes = content_hashes(table, column)
    _, codes = np.unique(hashes, return_inverse=True)
    return codes, hashes != NOTHING


def refuse_leaks(
    leaked: Mapping[str, Any], config: SplitConfig, setting: str | None = None
) -> None:
    """Refuse a split with a session or a speaker in several parts.

    Args:
        leaked: the result of `leaks`.
        setting: what split the rows, for the message; default: `split.by`.

    Raises:
        UsageError: unless `split.allow_leak` is set.
    """
    if config.allow_leak:
        return
    setting = setting or f"split.by: {config.by}"
    for name in ("sessions", "speakers"):
        if leaked[name]:
            examples = ", ".join(leaked[f"{name}_named"][:3])
            raise UsageError(
                f"{setting} puts {leaked[name]} {name} into several parts "
                f"({examples}); use `by: speaker`, which keeps speakers and their sessions "
                "together, or set split.allow_leak: true and every table will say LEAKY SPLIT"
            )
