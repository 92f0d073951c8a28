"""Groups of utterances that a split keeps together, and that intervals resample."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from multistill.corpora.rows import Columns
from multistill.errors import UsageError


@dataclass(frozen=True)
class Groups:
    """A partition of the rows of a manifest.

    Attributes:
        codes: index into `names` of each row [N].
        names: of the groups; they stay the same when a corpus grows (see `connected_groups`).
    """

    codes: npt.NDArray[np.int64]
    names: list[str]


def split_groups(table: Columns, by: str) -> Groups:
    """Groups of `split.by`: sessions, or by speaker the `connected_groups`.

    Raises:
        UsageError: an utterance has no session or no speaker.
    """
    codes, encoded = codes_of(table, by)
    names = encoded.to_pylist()
    if "" in names:
        row = int(np.flatnonzero(codes == names.index(""))[0])
        raise UsageError(
            f"split.by: {by} needs a {by} for every utterance, and "
            f"{table['utterance_id'][row].as_py()} has none; split by another key"
        )
    return Groups(codes, names) if by == "session" else connected_groups(table)


def connected_groups(table: Columns) -> Groups:
    """Connected components of speakers and sessions: utterances of one person or one dialogue.

    An utterance without a speaker belongs to its session, and one with neither is a group.

    A group is named after its first session in natural order, even if it has a single speaker:
    the name then stays the same when speakers join its sessions, and when its speakers appear
    in sessions that sort later. No rule can guarantee more. Of a session with A and one with B,
    which the other speaker may join next, the group's name must not change, so it is the
    session's; and if one speaker links two sessions, one of the two names must be dropped, as
    whenever two groups become one. A group without a session is named after its speaker, and
    one without either after its utterance.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    speaker_codes, encoded = codes_of(table, "speaker")
    speakers = encoded.to_pylist()
    session_codes, encoded = codes_of(table, "session")
    sessions = encoded.to_pylist()
    has_speaker = np.array([bool(name) for name in speakers], bool)[speaker_codes]
    has_session = np.array([bool(name) for name in sessions], bool)[session_codes]
    both = has_speaker & has_session
    pairs = np.unique(speaker_codes[both] * len(sessions) + session_codes[both])
    speaker, session = np.divmod(pairs, max(1, len(sessions)))
    size = len(speakers) + len(sessions)
    links = coo_array((np.ones(len(pairs)), (speaker, len(speakers) + session)), (size, size))
    count, component = connected_components(links, directed=False)
    members: list[tuple[list[str], list[str]]] = [([], []) for _ in range(count)]
    for kind, (offset, names) in enumerate(((len(speakers), sessions), (0, speakers))):
        for code, name in enumerate(names):
            if name:
                members[component[offset + code]][kind].append(name)
    names = [
        min(in_sessions or in_speakers, key=_natural_key) if in_sessions or in_speakers else ""
        for in_sessions, in_speakers in members
    ]
    codes = np.where(
        has_speaker, component[speaker_codes], component[len(speakers) + session_codes]
    ).astype(np.int64)
    alone = np.flatnonzero(~has_speaker & ~has_session)
    codes[alone] = len(names) + np.arange(len(alone))
    if len(alone):
        names += table["utterance_id"].take(pa.array(alone)).to_pylist()
    used, codes = np.unique(codes, return_inverse=True)
    return Groups(codes.astype(np.int64), [names[code] for code in used])


def codes_of(table: Columns, column: str) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """A column as indices, [N], into its distinct values."""
    encoded = table[column].dictionary_encode()  # one dictionary over all chunks
    if not encoded.num_chunks:
        return np.zeros(0, np.int64), pa.array([], pa.string())
    indices = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
    # A column that was dictionary-encoded before rows were filtered keeps the values of all.
    used, codes = np.unique(indices, return_inverse=True)
    return codes.astype(np.int64), encoded.chunk(0).dictionary.take(pa.array(used))


def _natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts `day9` before `day10`: later sessions should sort later."""
    pieces = re.split(r"(\d+)", name)
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in pieces], name
