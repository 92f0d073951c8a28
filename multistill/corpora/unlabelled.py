"""Corpora without labels (`unlabelled: true`): a part of the manifest for distilled students alone.

Their clips are in the part `unlabelled` of the manifest, in fold -1. No teacher, control, baseline,
class share or state statistic reads that part; a distilled student is trained on it towards the
teacher's outputs (`multistill.training.data`).

Nobody who is tested or validated on may be heard in it. Recordings that a corpus with labels has
too are dropped, in whatever part they are. A clip of a speaker or a session of the validation or
test part is left out: of the manifest, or under cross-validation of that fold's. Names are compared
without the title of their corpus, since recordings of the same people often come as two corpora:
two people of one name cost clips, one person under two corpora would cost the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from multistill.config import CorpusConfig
from multistill.corpora.build import BuildResult
from multistill.corpora.groups import codes_of, connected_groups
from multistill.corpora.manifest import NOTHING, UNLABELLED, content_hashes
from multistill.corpora.rejections import Rejections
from multistill.corpora.rows import Rows
from multistill.corpora.split import PARTS
from multistill.errors import MultistillError
from multistill.typing import BoolArray
from multistill.wording import counted


def unlabelled_titles(corpora: Sequence[CorpusConfig]) -> list[str]:
    """Titles of the corpora without labels, in the order of the job file."""
    return [config.title for config in corpora if config.unlabelled]


class Unlabelled:
    """The clips of the corpora without labels.

    Attributes:
        rows: with the columns of `BuildResult.rows`.
        read: number of clips of each corpus, before any was left out.
        labels: how many of them have a label, which is not read.
    """

    def __init__(self, rows: Rows, read: Mapping[str, int], labels: Mapping[str, int]) -> None:
        self.rows, self.read, self.labels = rows, read, labels

    @classmethod
    def separate(cls, built: BuildResult, titles: Sequence[str]) -> Unlabelled:
        """Take the clips of these corpora out of what was built.

        Clips whose recording a corpus with labels has too are rejected.
        """
        codes, names = codes_of(built.rows, "corpus")
        without = np.array([name in titles for name in names.to_pylist()], bool)[codes]
        read = {title: built.kept[title] for title in titles}
        apart = cls(built.rows.filter(without), read, dict(built.unread_labels))
        built.rows = built.rows.filter(~without)
        if len(apart.rows):
            own, others = (
                content_hashes(each, "audio_digest") for each in (apart.rows, built.rows)
            )
            known = np.isin(own, others)
            apart._reject(known, "a corpus with labels has its recording", built.rejections)
        return apart

    def heard(self, labelled: Rows, part: npt.NDArray[np.integer]) -> BoolArray:
        """Which clips are of a speaker or a session of the validation or test part [N].

        Args:
            labelled: rows of the corpora with labels.
            part: index into `split.PARTS` of each of them.
        """
        outside = labelled.filter(part != PARTS.index("train"))
        heard = np.zeros(len(self.rows), bool)
        for column in ("speaker", "session"):
            names = {_own_name(name) for name in pc.unique(outside[column]).to_pylist()} - {""}
            codes, values = codes_of(self.rows, column)
            is_outside = np.array([_own_name(name) in names for name in values.to_pylist()], bool)
            heard |= is_outside[codes]
        return heard

    def reject_heard(
        self, labelled: Rows, part: npt.NDArray[np.integer], rejections: Rejections
    ) -> None:
        """Reject the clips that `heard` names."""
        reason = "its speaker or session is in validation or test"
        self._reject(self.heard(labelled, part), reason, rejections)

    def _reject(self, mask: BoolArray, reason: str, rejections: Rejections) -> None:
        for name in self.rows.take("utterance_id", np.flatnonzero(mask)):
            rejections.add("unlabelled", name, reason)
        self.rows = self.rows.filter(~mask)

    def join(self, labelled: Rows, left_out: BoolArray | None = None) -> Rows:
        """The rows of the manifest, and after them the clips without labels, as a part of it.

        Args:
            left_out: clips that are not in it [N]; None: all are.
        """
        rows = self.rows if left_out is None else self.rows.filter(~left_out)
        if not len(rows):
            return labelled
        groups = connected_groups(rows)
        group = pa.DictionaryArray.from_arrays(groups.codes, pa.array(groups.names, pa.string()))
        part = (
            rows.append_column("split", parts_column(np.zeros(len(rows), np.int8), [UNLABELLED]))
            .append_column("fold", pa.array(np.full(len(rows), -1), pa.int32()))
            .append_column("group", group)
        )
        return labelled.extended(part)

    def describe(self, labelled: Rows) -> dict[str, dict[str, Any]]:
        """By corpus, as `quality.json` and the report have it.

        Args:
            labelled: rows of the corpora with labels, with their part.

        Returns:
            `clips` and `hours` that are left; `left_out`; `with_label`: clips read that have a
            label; `unnamed`: clips left without the name of a speaker; `transcripts`: clips left
            that say what a test clip says.
        """
        if not self.read:
            return {}
        tested = pc.equal(labelled["split"], "test").to_numpy()
        texts = np.unique(content_hashes(labelled, "text")[tested])
        result = {}
        for title, read in self.read.items():
            rows = self.rows.filter(pc.equal(self.rows["corpus"], title).to_numpy())
            said = content_hashes(rows, "text")
            same = np.isin(said, texts) & (said != NOTHING)
            speakers = rows["speaker"].cast(pa.string())
            result[title] = {
                "clips": len(rows),
                "hours": round(float(pc.sum(rows["duration_s"]).as_py() or 0) / 3600, 4),
                "left_out": read - len(rows),
                "with_label": self.labels.get(title, 0),
                "unnamed": pc.sum(pc.equal(speakers, "")).as_py() or 0,
                "transcripts": int(same.sum()),
            }
        return result


def parts_column(part: npt.NDArray[np.integer], names: Sequence[str]) -> pa.DictionaryArray:
    """The column `split` [N] from indices into the names of the parts."""
    return pa.DictionaryArray.from_arrays(pa.array(part, pa.int8()), pa.array(names, pa.string()))


def refuse_empty(described: Mapping[str, Mapping[str, Any]], rejections: Rejections) -> None:
    """Raise for a corpus without labels of which no clip is left.

    Raises:
        MultistillError: names the corpus and what was rejected.
    """
    for title, facts in described.items():
        if not facts["clips"]:
            reasons = f" (rejected: {rejections.commonest()})" if len(rejections) else ""
            raise MultistillError(
                f"corpus `{title}`: none of its clips is left for the students{reasons}; add "
                "recordings of other people to it, or remove it from `corpora`"
            )


def sentences(described: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a person should know about the corpora without labels."""
    lines = []
    for title, facts in described.items():
        clips = counted(facts["clips"], "clip")
        line = f"{title}: {clips} without labels, {facts['hours']:.2f} h"
        lines.append(line + f", {facts['left_out']} left out" * bool(facts["left_out"]))
        if facts["with_label"]:
            lines.append(
                f"{title}: {facts['with_label']} clips have a label, which is not read "
                "(`unlabelled: true`)"
            )
        if facts["unnamed"]:
            lines.append(
                f"{title}: {facts['unnamed']} clips name no speaker, so nobody can tell whether "
                "somebody who is tested is heard in them"
            )
    return lines


def _own_name(name: str) -> str:
    """A session's or speaker's own name, which the manifest has behind the corpus's title."""
    return name.partition("/")[2]
