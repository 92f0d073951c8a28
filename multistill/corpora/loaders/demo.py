"""The packaged demo corpus: SYNTHETIC Korean utterances in KEMDy20's file layout.

Sessions of two eSpeak NG voices each are packaged as Ogg Opus with a JSON index (made by
`scripts/make_demo_corpus.py`). They are unpacked into 16 kHz wav files, CP949 transcripts and
annotation tables, which the KEMDy20 loader reads.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

from multistill.config import CorpusConfig
from multistill.corpora.labels import LabelReader
from multistill.corpora.loaders import kemdy20
from multistill.corpora.records import Record
from multistill.errors import MultistillError
from multistill.hardware import cores

INDEX = "demo.json"
_GROUP = ("Emotion", "Valence", "Arousal")
# The spelling in KEMDy20.
_SPELLING = {"disgust": "disqust"}


def digest() -> str:
    """Identity of the packaged corpus: 16 hex digits of its index.

    The index has a SHA-256 of every audio file, so it identifies their content too.
    """
    return hashlib.sha256(_packaged(INDEX)).hexdigest()[:16]


def unpack(unpacked: Path) -> Path:
    """Unpack the corpus into a folder `demo-<digest>` in `unpacked`, unless it exists.

    The folder is created atomically; several processes may unpack at the same time.

    Raises:
        MultistillError: if a packaged file is missing or damaged.
    """
    final = unpacked / f"demo-{digest()}"
    if final.is_dir():
        return final
    index = json.loads(_packaged(INDEX))
    unpacked.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=unpacked, prefix=f".{final.name}."))
    try:
        (partial / "SYNTHETIC.txt").write_text(
            f"{index['title']}\n{index['note']}\nMade by {index['made_by']}.\n", encoding="utf-8"
        )
        with ThreadPoolExecutor(min(4, cores())) as pool:
            for _ in pool.map(
                lambda entry: _unpack_session(index, entry, partial), index["sessions"]
            ):
                pass
        partial.chmod(0o755)
        try:
            partial.rename(final)
        except OSError:
            if not final.is_dir():  # else another process has created it, with the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def load(config: CorpusConfig, root: Path, labels: LabelReader) -> Iterator[Record]:
    """Read the demo corpus from the folder that `unpack` returned."""
    return kemdy20.load(config, root, labels)


def _packaged(name: str) -> bytes:
    try:
        return (files("multistill.corpora") / "data" / name).read_bytes()
    except OSError as error:
        raise MultistillError(
            f"the packaged demo corpus lacks {name}; reinstall multistill"
        ) from error


def _unpack_session(index: Mapping[str, Any], session: Mapping[str, Any], root: Path) -> None:
    import soundfile

    data = _packaged(session["audio"])
    if hashlib.sha256(data).hexdigest() != session["sha256"]:
        raise MultistillError(
            f"the packaged demo file {session['audio']} is damaged; reinstall multistill"
        )
    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    number = session["session"]
    folder = root / "wav" / f"Session{number:02d}"
    folder.mkdir(parents=True)
    rows = []
    for row in session["utterances"]:
        start, stop = row["start"], row["start"] + row["frames"]
        soundfile.write(folder / f"{row['id']}.wav", samples[start:stop], rate, subtype="PCM_16")
        (folder / f"{row['id']}.txt").write_bytes(f"{row['text']}\n".encode("cp949"))
        rows.append(
            [f"{start / rate:.3f}", f"{stop / rate:.3f}", row["id"], *_evaluation(index, row)]
        )
    table = root / "annotation" / f"Sess{number:02d}_eval.csv"
    table.parent.mkdir(exist_ok=True)
    count = len(session["utterances"][0]["emotion"])
    raters = [f"Eval{rater:02d}" for rater in range(1, count + 1)]
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        groups = ["Total Evaluation", *raters]
        writer.writerow(
            ["Numb", "WAV", "", "Segment ID"] + [c for g in groups for c in (g, "", "")]
        )
        writer.writerow(["", "start", "end", ""] + [*_GROUP] * len(groups))
        writer.writerows([number, *cells] for number, cells in enumerate(rows, 1))


def _evaluation(index: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Cells of Total Evaluation and of the ten raters, three each."""
    names = [_SPELLING.get(name, name) for name in index["classes"]]
    chosen = [int(digit) for digit in row["emotion"]]
    most = max(map(chosen.count, chosen))
    total = ";".join(names[k] for k in sorted(set(chosen)) if chosen.count(k) == most)
    cells = [total, _mean(row["valence"]), _mean(row["arousal"])]
    for emotion, valence, arousal in zip(chosen, row["valence"], row["arousal"], strict=True):
        cells += [names[emotion], valence, arousal]
    return cells


def _mean(digits: Sequence[str]) -> str:
    return f"{sum(map(int, digits)) / len(digits):.1f}"
