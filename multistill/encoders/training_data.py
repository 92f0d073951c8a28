"""Emotion corpora in the published training data of encoders.

An encoder that was trained on a corpus has seen its test clips, often with their labels, so results
there are too good whatever the split: ExHuBERT, trained on 37 corpora with EMO-DB among them, has a
UAR of 99 % on EMO-DB, HuBERT large 90 % (supplement on the page of amiriparian/ExHuBERT).

Encoders and tables are recognised by their names alone. Nothing is said about what publishers do
not list, such as the web recordings that Whisper was trained on, nor about renamed folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePosixPath
from unicodedata import normalize

from multistill.config import CorpusConfig, CorpusKind, FeaturesConfig

WELLNESS = "AI Hub 감성대화 말뭉치"
CORPORA: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(
        (
            "AESDD", "ASED", "ASVP-ESD", "CASIA", "CREMA-D", "EA-ACT", "EA-BMW", "EA-WSJ", "EMNS",
            "EmoFilm", "EmotiW", "EmoV-DB", "EMOVO", "Emozionalmente", "eNTERFACE", "EU-EmoSS",
            "GEMEP", "GVESS", "IEMOCAP", "JL-Corpus", "KEMDy19", "KEMDy20", "M3ED", "MEAD", "MELD",
            "MER2023", "MESD", "MSP-Podcast", "Oreau", "PAVOQUE", "PPMMK", "RAVDESS", "RESD",
            "SAVEE", "ShEMO", "SIMIS", "SmartKom", "SUBESCO", "SUSAS", "TESS", "TurEV-DB",
            "TurkishEmo",
        ),
        (),
    ),
    "CMU-MOSEI": ("MOSEI",),
    "EMO-DB": ("Berlin Database of Emotional Speech",),
    "ESD": ("Emotional Speech Dataset",),
    "FAU Aibo": ("Aibo",),
    WELLNESS: ("감성대화 말뭉치",),
}  # fmt: skip
"""Corpus -> other names of it. Not here: corpora whose name is a word or a language (CaFE, DEMoS,
Polish, URDU) or has three letters and no meaning of its own (ABC, AD, BES, CVE, DES, MES)."""

KINDS: Mapping[CorpusKind, str] = {
    "emodb": "EMO-DB",
    "kemdy19": "KEMDy19",
    "kemdy20": "KEMDy20",
    "aihub-wellness": WELLNESS,
}


@dataclass(frozen=True)
class TrainingData:
    """Emotion corpora that encoders of some names were trained on.

    Attributes:
        names: an encoder is meant if its name holds one of these, whatever the case and the signs
            between words. Copies and models that were trained further keep the name as a rule.
        use: what the training did with the corpora, as a verb phrase before their names.
        corpora: keys of `CORPORA`.
        source: where the publishers say so.
    """

    names: Sequence[str]
    use: str
    corpora: Sequence[str]
    source: str


# github.com/emo-box/EmoBox, README, Datasets
EMOBOX = (
    "AESDD", "ASED", "ASVP-ESD", "CASIA", "CREMA-D", "EMNS", "EMO-DB", "EmoV-DB", "EMOVO",
    "Emozionalmente", "eNTERFACE", "ESD", "IEMOCAP", "JL-Corpus", "M3ED", "MEAD", "MELD",
    "MER2023", "MESD", "MSP-Podcast", "Oreau", "PAVOQUE", "RAVDESS", "RESD", "SAVEE", "ShEMO",
    "SUBESCO", "TESS", "TurEV-DB",
)  # fmt: skip

PUBLISHED: Sequence[TrainingData] = (
    TrainingData(
        ("emotion2vec+ seed",),
        "was fine-tuned on data from EmoBox, which has",
        EMOBOX,
        "github.com/ddlBoJack/emotion2vec, issue 46",
    ),
    TrainingData(
        ("emotion2vec+ base", "emotion2vec+ large"),
        "was fine-tuned on labels of a model that was fine-tuned on data from EmoBox, which has",
        EMOBOX,
        "github.com/ddlBoJack/emotion2vec, issue 46",
    ),
    TrainingData(
        ("emotion2vec",),
        "was pre-trained on",
        ("CMU-MOSEI", "IEMOCAP", "MEAD", "MELD", "MSP-Podcast"),
        "Ma et al., Findings of ACL 2024, table 1",
    ),
    TrainingData(
        ("ExHuBERT",),
        "was fine-tuned on",
        (
            "CASIA",
            "CREMA-D",
            "EA-ACT",
            "EA-BMW",
            "EA-WSJ",
            "EMO-DB",
            "EmoFilm",
            "EmotiW",
            "EMOVO",
            "eNTERFACE",
            "ESD",
            "EU-EmoSS",
            "FAU Aibo",
            "GEMEP",
            "GVESS",
            "IEMOCAP",
            "MESD",
            "MELD",
            "PPMMK",
            "RAVDESS",
            "SAVEE",
            "ShEMO",
            "SmartKom",
            "SIMIS",
            "SUSAS",
            "SUBESCO",
            "TESS",
            "TurkishEmo",
        ),
        "model card of amiriparian/ExHuBERT, EmoSet++",
    ),
    TrainingData(
        ("wav2vec2-large-robust-12-ft-emotion-msp-dim",),
        "was fine-tuned on",
        ("MSP-Podcast",),
        "model card of audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim",
    ),
    TrainingData(
        ("SER-Odyssey-Baseline",),
        "was fine-tuned on",
        ("MSP-Podcast",),
        "model card of 3loi/SER-Odyssey-Baseline-WavLM-Categorical",
    ),
    TrainingData(
        ("superb-er",),
        "was trained for emotion on",
        ("IEMOCAP",),
        "model card of superb/hubert-large-superb-er",
    ),
    TrainingData(
        ("wav2vec2-lg-xlsr-en-speech-emotion-recognition",),
        "was fine-tuned on",
        ("RAVDESS",),
        "model card of ehcalabres/wav2vec2-lg-xlsr-en-speech-emotion-recognition",
    ),
    TrainingData(
        ("wav2vec2-xlsr-english-speech-emotion-recognition",),
        "was fine-tuned on",
        ("RAVDESS",),
        "model card of AreejB/wav2vec2-xlsr-english-speech-emotion-recognition",
    ),
    TrainingData(
        ("wav2vec-english-speech-emotion-recognition",),
        "was fine-tuned on",
        ("RAVDESS", "SAVEE", "TESS"),
        "model card of r-f/wav2vec-english-speech-emotion-recognition",
    ),
    TrainingData(
        ("speech-emotion-recognition-with-facebook-wav2vec2-large-xlsr-53",),
        "was fine-tuned on",
        ("RAVDESS", "SAVEE", "TESS"),
        "model card of firdhokk/speech-emotion-recognition-with-facebook-wav2vec2-large-xlsr-53",
    ),
    TrainingData(
        ("wav2vec2-large-emotion-detection-german",),
        "was fine-tuned on",
        ("EMO-DB",),
        "model card of padmalcom/wav2vec2-large-emotion-detection-german",
    ),
    TrainingData(
        ("emotion-english-distilroberta-base",),
        "was fine-tuned on",
        ("MELD",),
        "model card of j-hartmann/emotion-english-distilroberta-base, appendix",
    ),
    TrainingData(
        ("klue-bert-base-sentiment", "mdistilbertV3.1-sentiment"),
        "was fine-tuned on",
        (WELLNESS,),
        "model cards of hun3359/klue-bert-base-sentiment and hun3359/mdistilbertV3.1-sentiment",
    ),
)


def overlaps(features: FeaturesConfig, corpora: Sequence[CorpusConfig]) -> list[str]:
    """A sentence for each encoder of a job whose training data hold corpora of the job.

    Corpora without labels do not count: nothing is tested on them.
    """
    titles: dict[str, list[str]] = {}
    for config in corpora:
        if config.unlabelled:
            continue
        for corpus in corpora_of(config):
            titles.setdefault(corpus, []).append(f"`{config.title}`")
    models = [part.model for part in features.speech.parts]
    encoders = dict.fromkeys((*models, features.text.model))
    return [sentence for model in encoders for sentence in _sentences(model, _known(model, titles))]


def corpora_of(config: CorpusConfig) -> list[str]:
    """Keys of `CORPORA` that a corpus is: by its kind, a table by its name, file and folders."""
    if config.kind != "table":
        return [KINDS[config.kind]] if config.kind in KINDS else []
    names = [config.name or ""]
    if config.path:
        path = PurePosixPath(config.path)
        names += [path.stem, path.parent.name]
    if config.audio_root:
        names.append(PurePosixPath(config.audio_root).name)
    found = {corpus for name in names for corpus in _named(name)}
    return [corpus for corpus in CORPORA if corpus in found]


def mentions(name: str, sought: str) -> bool:
    """Whether whole words of a name spell another, whatever the case and the signs between words.

    Examples:
        >>> mentions("MSP_Podcast v1.11", "msp-podcast"), mentions("superbert", "superb-er")
        (True, False)
    """
    words, spelled = _words(name), "".join(_words(sought))
    ends = combinations(range(len(words) + 1), 2)
    return any("".join(words[first:last]) == spelled for first, last in ends)


def _words(name: str) -> list[str]:
    """Runs of letters and of digits; composed, since file systems may decompose Hangul."""
    composed = normalize("NFKC", name.replace("+", " plus ")).casefold()
    return re.findall(r"[^\W\d_]+|\d+", composed)


def _named(name: str) -> list[str]:
    """Corpora that a name mentions; `ASVP-ESD` is not ESD."""
    found = [
        corpus
        for corpus, others in CORPORA.items()
        if any(mentions(name, spelling) for spelling in (corpus, *others))
    ]
    return [
        each for each in found if not any(mentions(other, each) for other in found if other != each)
    ]


def _known(model: str, titles: Mapping[str, Sequence[str]]) -> Mapping[tuple[str, str], list[str]]:
    """What an encoder learnt from the job's corpora: (use, source) -> the corpora.

    The first entry of `PUBLISHED` that names a corpus counts, and the encoder's name last.
    """
    name = PurePosixPath(model).name
    known: dict[tuple[str, str], list[str]] = {}
    for corpus, of in titles.items():
        for use, source in _uses(name, corpus):
            known.setdefault((use, source), []).append(f"{corpus} ({', '.join(of)})")
            break
    return known


def _uses(name: str, corpus: str) -> Iterator[tuple[str, str]]:
    for entry in PUBLISHED:
        if corpus in entry.corpora and any(mentions(name, each) for each in entry.names):
            yield entry.use, entry.source
    if corpus in _named(name):
        yield "is named after", "its name"


def _sentences(model: str, known: Mapping[tuple[str, str], Sequence[str]]) -> Iterator[str]:
    for (use, source), corpora in known.items():
        yield (
            f"`{model}` {use} {', '.join(corpora)}, so it may know the clips that this job tests "
            "on, and results may be too good; compare with an encoder that has not seen them "
            f"(source: {source})"
        )
