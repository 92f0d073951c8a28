"""EMO-DB: ten German actors, ten sentences, seven emotions (Burkhardt et al., 2005).

    SSTTTEv.wav   speaker, text, emotion letter, version: `03a01Wa.wav`

The archive has the clips in wav/; both that folder and its parent are accepted as the corpus.

The sentences are neutral, so text carries no information about the emotion. There are no raters
and no dialogues: each clip is a dialogue of its own, and the speaker is used as session.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from multistill.config import CorpusConfig
from multistill.corpora.labels import LabelReader
from multistill.corpora.paths import list_files, wrong_folder
from multistill.corpora.records import Record, Rejected, Utterance

_NAME = re.compile(r"(?P<speaker>\d{2})(?P<text>[ab]\d{2})(?P<emotion>[A-Z])[a-z]?\.(?i:wav)")

EMOTIONS = {
    "W": ("angry", "Wut"),
    "L": ("boredom", "Langeweile"),
    "E": ("disgust", "Ekel"),
    "A": ("fear", "Angst"),
    "F": ("happy", "Freude"),
    "T": ("sad", "Trauer"),
    "N": ("neutral", "neutral"),
}

AGES = {
    "03": 31, "08": 34, "09": 21, "10": 32, "11": 26,
    "12": 30, "13": 32, "14": 35, "15": 25, "16": 31,
}  # fmt: skip
"""In years, as published with the corpus."""

SPEAKERS = {
    "03": "M", "08": "F", "09": "F", "10": "M", "11": "M",
    "12": "M", "13": "F", "14": "F", "15": "M", "16": "F",
}  # fmt: skip

TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


def load(config: CorpusConfig, root: Path, labels: LabelReader) -> Iterator[Record]:
    """Yield the clips in the order of their names.

    Boredom is not one of the published classes: its clips are rejected unless the job's
    `labels.classes` name it or the corpus maps it (`labels: {boredom: neutral}`; the letter or the
    German name can be used too).
    """
    for folder in (root / "wav", root):
        files = list_files(folder, root)
        clips = sorted(name for name in files if name.lower().endswith(".wav"))
        if any(_NAME.fullmatch(name) for name in clips):
            break
    else:
        raise wrong_folder("EMO-DB", "wav/SSTTTEv.wav (such as 03a01Wa.wav)", root)
    for name in clips:
        path = folder / name
        yield _record(path, path.relative_to(root).as_posix(), files[name], labels)


def _record(path: Path, source: str, inside: bool, labels: LabelReader) -> Record:
    match = _NAME.fullmatch(path.name)
    if not inside:
        return Rejected(source, "is a link that leaves the corpus")
    if match is None:
        return Rejected(source, "is not named like an EMO-DB clip (such as 03a01Wa.wav)")
    if match["emotion"] not in EMOTIONS or match["text"] not in TEXTS:
        return Rejected(source, "its name has an emotion or a text that EMO-DB does not have")
    names = (match["emotion"], *EMOTIONS[match["emotion"]])
    # The corpus's `labels` may map the emotion by any of its names; the default is the English one.
    name = next((name for name in names if labels.knows(name)), names[1])
    label = labels[name]
    if label is None:
        return Rejected(source, labels.why_rejected(name))
    text = TEXTS[match["text"]]
    return Utterance(
        utterance_id=path.stem,
        audio_path=str(path),
        session=match["speaker"],
        dialogue=path.stem,
        turn=0,
        speaker=match["speaker"],
        gender=SPEAKERS.get(match["speaker"]),
        age=AGES.get(match["speaker"]),
        style="scripted",
        text_raw=text,
        text=text,
        label=label,
    )
