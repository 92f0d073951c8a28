"""Advice that works: each sentence that tells the user to do something is provoked and followed.

A row has what provokes the sentence, a pattern for the advice in it, and one or several ways of
following it, each of which must succeed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from helpers.advice import told

from multistill.config import SplitConfig, TrackingConfig
from multistill.corpora.split import leaks, refuse_leaks, split_rows
from multistill.errors import JobFileError, MultistillError, UsageError
from multistill.pipeline import jobfile
from multistill.workspace import Workspace

BASE = "name: x\ncorpora: [{kind: demo}]\n"
MODEL = "students: [{name: a, model: {preset: small-student%s}%s}]\n"
AUDIO = "students: [{name: a, model: small-audio-student}]\n"
DEMO_TWICE = "name: x\ncorpora: [{kind: demo}, {kind: demo%s}]\n"
TWO_ENCODERS = (
    "features: {speech: {model: smart-turn, layers: [1, 2], combine: concat, "
    "additional: [log-mel]}}\n"
)
LIGHT = "students: [{name: a, model: {preset: light-student%s}}]\n"
COPIES = "features: {augmentation: {copies: 2, %s}}\n"
TEXT = "small-text-student"
SEQUENCES = "distillation: {sequence_weight: 1.0}\n"
SPACE = "search: {space: {%s}}\n"
WILD = "name: x\ncorpora: [{kind: demo}, {kind: table, path: /d.csv, unlabelled: true%s}]\n"

JOB_FILES: list[tuple[str, str, list[str]]] = [
    # what provokes it, the advice, what the user writes instead
    (
        "split: {valid: 0}\nsearch: true\n",
        "chooses; use 0.15",
        ["split: {valid: 0.15}\nsearch: true\n", "split: {valid: 0}\n"],
    ),
    ("split: {test: 0}\n", "use 0.2, for example", ["split: {test: 0.2}\n"]),
    (
        "split: {by: random}\n",
        "use `by: session`, or set `allow_leak: true`",
        ["split: {by: session}\n", "split: {by: random, allow_leak: true}\n"],
    ),
    (
        "split: {max_per_class: {happy: -1}}\n",
        "use 0 or more",
        ["split: {max_per_class: {happy: 0}}\n"],
    ),
    (
        "split: {max_per_class: {joy: 9}}\n",
        "max_per_class: `{}` is not one of {}",
        ["split: {max_per_class: {happy: 9}}\n"],
    ),
    (
        "students: [{name: a, model: small-student}, {name: A, model: small-student}]\n",
        "another student is called `{}` but for its capitals; choose another name",
        ["students: [{name: a, model: small-student}, {name: b, model: small-student}]\n"],
    ),
    (
        "name: latest\ncorpora: [{kind: demo}]\n",
        "`latest` is the link to the newest report; choose another name",
        ["name: newest\ncorpora: [{kind: demo}]\n"],
    ),
    (
        'name: "x\\u200b"\ncorpora: [{kind: demo}]\n',
        "has the character U+{}, which cannot be seen in a name; remove it",
        [BASE],
    ),
    (
        "name: ' x'\ncorpora: [{kind: demo}]\n",
        "starts or ends with a space; remove it",
        [BASE],
    ),
    (
        f"{BASE}workspace: ~nobody-of-this-name/ws\n",
        "{}: there is no home folder for the `~` of `{}` on this machine; write the whole path",
        [f"{BASE}workspace: /home/nobody-of-this-name/ws\n"],
    ),
    (DEMO_TWICE % "", "give one a `name`", [DEMO_TWICE % ", name: other"]),
    (
        COPIES % "noise_db: [30, 10]",
        "is reversed; write the lowest value first",
        [COPIES % "noise_db: [10, 30]"],
    ),
    (
        COPIES % "speed_range: [0.1, 1.1]",
        "] is out of range; use values from {} to {}",
        [COPIES % "speed_range: [0.5, 1.1]"],
    ),
    (
        COPIES % "noise: 0, speed: 0, reverberation: 0",
        "all probabilities are 0; raise one, e.g. `noise: 0.5`, or remove `copies`",
        [COPIES % "noise: 0.5, speed: 0, reverberation: 0", BASE],
    ),
    (
        f"{COPIES % 'noise_kinds: [white, babble]'}protocol: k-fold\n",
        "tests; remove `babble` from `noise_kinds`, or give a `noise_folder`",
        [
            f"{COPIES % 'noise_kinds: [white]'}protocol: k-fold\n",
            f"{COPIES % 'noise_kinds: [babble], noise_folder: /noise'}protocol: k-fold\n",
        ],
    ),
    (
        f"{COPIES % 'noise: 1'}recipe: features-only\n",
        "trains no model that would read the copies; remove the section, or set",
        ["recipe: features-only\n", f"{COPIES % 'noise: 1'}recipe: distillation\n"],
    ),
    (
        f"{COPIES % 'noise: 1'}teacher: text-teacher\nstudents: [{{name: a, model: {TEXT}}}]\n",
        "and all models of the job read text alone; remove `copies`",
        [f"teacher: text-teacher\nstudents: [{{name: a, model: {TEXT}}}]\n"],
    ),
    (
        "students: [{name: a, model: small-audio-student, "
        "train: {augmentation: {word_swap: 0.1}}}]\n",
        "states, and the model reads none; remove it there",
        [
            "students: [{name: a, model: small-audio-student, "
            "train: {augmentation: {mixup: 0.1}}}]\n"
        ],
    ),
    (
        f"{SEQUENCES}students: [{{name: a, model: small-student, "
        "train: {augmentation: {mixup: 0.1, mixup_of: pooled}}}]\n",
        "`distillation.sequence_weight` compares; use `mixup_of: states`, or set `sequence_weight: "
        "0`",
        [
            f"{SEQUENCES}students: [{{name: a, model: small-student, "
            "train: {augmentation: {mixup: 0.1, mixup_of: states}}}]\n",
            "distillation: {sequence_weight: 0}\nstudents: [{name: a, model: small-student, "
            "train: {augmentation: {mixup: 0.1, mixup_of: pooled}}}]\n",
        ],
    ),
    (
        f"students: [{{name: a, model: {TEXT}}}]\n"
        f"{SPACE % 'train.augmentation.time_masks: {low: 0, high: 3}'}",
        "states, and the searched model reads none; remove that key",
        [
            f"students: [{{name: a, model: {TEXT}}}]\n"
            f"{SPACE % 'train.augmentation.word_swap: {low: 0, high: 1}'}"
        ],
    ),
    (
        f"students: [{{name: a, model: {TEXT}}}]\n"
        "features: {speech: {model: untrained-wav2vec2, train: last-2}}\n"
        f"{SPACE % 'features.speech.train.top: {low: 1, high: 2}'}",
        "trains no {} encoder; set `{}`, or remove that key",
        [
            "students: [{name: a, model: small-student}]\n"
            "features: {speech: {model: untrained-wav2vec2, train: last-2}}\n"
            f"{SPACE % 'features.speech.train.top: {low: 1, high: 2}'}",
            f"students: [{{name: a, model: {TEXT}}}]\n"
            f"{SPACE % 'distillation.weight: {low: 0.1, high: 0.9}'}",
        ],
    ),
    (
        "features: {speech: {model: untrained-wav2vec2, train: {kind: last-1, top: 2}}}\n",
        "more than the {} layers that take part; lower it, or raise `layers`",
        [
            "features: {speech: {model: untrained-wav2vec2, train: {kind: last-1, top: 1}}}\n",
            "features: {speech: {model: untrained-wav2vec2, train: {kind: last-2, top: 2}}}\n",
        ],
    ),
    (
        "name: x\ncorpora: [{kind: emodb}]\n",
        "a corpus of kind `{}` needs `path`",
        ["name: x\ncorpora: [{kind: emodb, path: /data/emodb}]\n"],
    ),
    (
        "name: x\ncorpora: [{kind: demo, path: /d}]\n",
        "the demo corpus is packaged: remove `path`",
        [BASE],
    ),
    (
        "name: x\ncorpora: [{kind: demo, labels: {joy: hapy}}]\n",
        "corpora.{}.labels.{}: `{}` is not a class of the job; use one of {}",
        ["name: x\ncorpora: [{kind: demo, labels: {joy: happy}}]\n"],
    ),
    (
        f"{BASE}split: {{by: column}}\nprotocol: k-fold\n",
        "tests every clip; set `protocol: holdout`, or `split.by: session`",
        [
            f"{BASE}split: {{by: column}}\nprotocol: holdout\n",
            f"{BASE}split: {{by: session}}\nprotocol: k-fold\n",
        ],
    ),
    (
        f"{BASE}protocol: cross-corpus\n",
        "protocol: cross-corpus trains on each corpus and tests on the others; add a second one",
        [f"{DEMO_TWICE % ', name: b'}protocol: cross-corpus\n"],
    ),
    (
        f"{BASE}protocol: {{kind: leave-one-out, repeats: 3}}\n",
        "use `kind: k-fold`, or remove `repeats`",
        [
            f"{BASE}protocol: {{kind: k-fold, repeats: 3}}\n",
            f"{BASE}protocol: {{kind: leave-one-out}}\n",
        ],
    ),
    (
        f"{BASE}protocol: {{kind: k-fold, folds: 20, repeats: 6}}\n",
        "with trainings of their own; use fewer of either",
        [
            f"{BASE}protocol: {{kind: k-fold, folds: 20, repeats: 5}}\n",
            f"{BASE}protocol: {{kind: k-fold, folds: 10, repeats: 6}}\n",
        ],
    ),
    (
        f"{BASE}search: {{nested: true}}\n",
        "set `nested: false`, or a `protocol` with folds",
        [
            f"{BASE}search: {{nested: false}}\n",
            f"{BASE}search: {{nested: true}}\nprotocol: k-fold\n",
        ],
    ),
    (
        f"{BASE}search: {{nested: true}}\nprotocol: k-fold\ntracking: {{champion: {{}}}}\n",
        "set `nested: false`, or remove `champion`",
        [
            f"{BASE}search: {{nested: false}}\nprotocol: k-fold\ntracking: {{champion: {{}}}}\n",
            f"{BASE}search: {{nested: true}}\nprotocol: k-fold\n",
        ],
    ),
    (
        f"{BASE}labels: {{classes: [sad, 'a;b']}}\n",
        "which separates the classes of a tie, or a character that shows nothing; choose another",
        [f"{BASE}labels: {{classes: [sad, a or b]}}\n"],
    ),
    (
        f"{BASE}labels: {{classes: [sad, happy, joy]}}\n",
        "(they are spellings of one emotion, or it stands twice); keep one of them",
        [f"{BASE}labels: {{classes: [sad, happy]}}\n", f"{BASE}labels: {{classes: [sad, joy]}}\n"],
    ),
    (
        f"{BASE}labels: {{classes: [sad, happy], others: rest}}\n",
        "{}: `{}` is not a class; use one of {}",
        [f"{BASE}labels: {{classes: [sad, happy, rest], others: rest}}\n"],
    ),
    (
        f"{BASE}labels: {{classes: [sad, happy, sad]}}\n",
        "classes: `{}` stands there twice; remove one",
        [f"{BASE}labels: {{classes: [sad, happy]}}\n"],
    ),
    (
        "tracking: {uri: 'https://ann:geheim@mlflow.lab'}\n",
        "remove it and set it through the environment",
        ["tracking: {uri: 'https://mlflow.lab'}\n"],
    ),
    (
        "search: {student: audi}\n",
        "search.student: no student is called `{}`; there is {}",
        ["search: {student: audio}\n", "search: {student: text}\n"],
    ),
    (
        "label_shares: {students: [audi]}\n",
        "label_shares.students: no student is called `{}`; there is {}",
        ["label_shares: {students: [audio]}\n", "label_shares: {students: [text]}\n"],
    ),
    (
        "label_shares: {students: [audio, audio]}\n",
        "`students` lists `{}` twice; remove one",
        ["label_shares: {students: [audio]}\n"],
    ),
    (
        "label_shares:\n",
        "the section is empty; write `{}: true` to have it with all defaults, or remove it",
        ["label_shares: true\n", BASE],
    ),
    (
        MODEL % ("", ", train: {oversample: true}") + "label_shares: {unlabelled: true}\n",
        "set `oversample: false` there, or `unlabelled: false`",
        [
            MODEL % ("", ", train: {oversample: false}") + "label_shares: {unlabelled: true}\n",
            MODEL % ("", ", train: {oversample: true}") + "label_shares: {unlabelled: false}\n",
        ],
    ),
    (
        MODEL % ("", ", train: {workers: 2, gpus_per_worker: 0.5}"),
        "set `workers: 1` or `gpus_per_worker: 1`",
        [
            MODEL % ("", ", train: {workers: 1, gpus_per_worker: 0.5}"),
            MODEL % ("", ", train: {workers: 2, gpus_per_worker: 1}"),
        ],
    ),
    (
        "search: {workers_per_trial: 2, gpus_per_trial: 0.5}\n",
        "set `workers_per_trial: 1` or a whole `gpus_per_trial`",
        [
            "search: {workers_per_trial: 1, gpus_per_trial: 0.5}\n",
            "search: {workers_per_trial: 2, gpus_per_trial: 1}\n",
        ],
    ),
    (
        SPACE % "train.dropout: {low: 0}",
        "needs `low` and `high`, or `choices`",
        [
            SPACE % "model.dropout: {low: 0, high: 0.5}",
            SPACE % "model.dropout: {choices: [0, 0.5]}",
        ],
    ),
    (
        SPACE % "train.learning_rate: {low: 0, high: 1, log: true}",
        "a logarithmic range needs `low` above 0",
        [SPACE % "train.learning_rate: {low: 0.001, high: 1, log: true}"],
    ),
    (
        SPACE % "train.learning_rate: {low: 1, high: 2, choices: [1]}",
        "give either `choices` or `low` and `high`",
        [
            SPACE % "train.learning_rate: {low: 1, high: 2}",
            SPACE % "train.learning_rate: {choices: [1]}",
        ],
    ),
    (
        SPACE % "train.learning_rat: {choices: [1]}",
        "`{}` cannot be searched; did you mean `{}`?",
        [SPACE % "train.learning_rate: {choices: [1]}"],
    ),
    (
        SPACE % "distillation.dkd_beta: {low: 1, high: 8, when: {distillation.loss: [dkd]}}",
        "add it or remove `when`",
        [
            SPACE % "distillation.loss: {choices: [kd, dkd]}, "
            "distillation.dkd_beta: {low: 1, high: 8, when: {distillation.loss: [dkd]}}",
            SPACE % "distillation.dkd_beta: {low: 1, high: 8}",
        ],
    ),
    (
        SPACE % "model.dropout: {low: 0, high: 0.5}, "
        "train.learning_rate: {low: 0.1, high: 1, when: {model.dropout: [0.1]}}",
        "has no `choices`; give it some",
        [
            SPACE % "model.dropout: {choices: [0.1, 0.5]}, "
            "train.learning_rate: {low: 0.1, high: 1, when: {model.dropout: [0.1]}}"
        ],
    ),
    (
        SPACE % "model.dropout: {choices: [0.1], when: {train.learning_rate: [1]}}, "
        "train.learning_rate: {choices: [1], when: {model.dropout: [0.1]}}",
        "remove one `when`",
        [
            SPACE % "model.dropout: {choices: [0.1]}, "
            "train.learning_rate: {choices: [1], when: {model.dropout: [0.1]}}"
        ],
    ),
    (
        SPACE % "model.width: {choices: [65]}, model.heads: {choices: [2]}",
        "change the choices",
        [SPACE % "model.width: {choices: [64]}, model.heads: {choices: [2]}"],
    ),
    (
        SPACE % "model.speech_layer: {low: 1, high: 2}",
        "search.space: `model.{}` needs `choices`",
        [
            "features: {speech: {model: smart-turn, layers: [1, 2], combine: concat}}\n"
            + SPACE % "model.speech_layer: {choices: [1, 2]}"
        ],
    ),
    (
        f"{BASE}features: {{speech: smart-turn}}\n{LIGHT % ''}",
        "add `additional: [{}]` to features.speech and set `speech_encoder: {}` in its model",
        [f"{BASE}{TWO_ENCODERS}{LIGHT % ', speech_encoder: log-mel'}"],
    ),
    (
        f"{BASE}{TWO_ENCODERS}{LIGHT % ''}",
        "set `speech_encoder: {}` in its model",
        [f"{BASE}{TWO_ENCODERS}{LIGHT % ', speech_encoder: log-mel'}"],
    ),
    (
        f"{BASE}{TWO_ENCODERS}{MODEL % (', speech_encoder: smart-turn', '')}"
        + SPACE % "model.front: {choices: [linear, convolutional]}",
        "{}, or use `front: linear`",
        [
            f"{BASE}{TWO_ENCODERS}{MODEL % (', speech_encoder: log-mel', '')}"
            + SPACE % "model.front: {choices: [linear, convolutional]}",
            f"{BASE}{TWO_ENCODERS}{MODEL % (', speech_encoder: smart-turn', '')}"
            + SPACE % "model.front: {choices: [linear]}",
        ],
    ),
    (
        f"{BASE}{TWO_ENCODERS}{LIGHT % ', speech_encoder: log-mel'}"
        + SPACE % "model.speech_encoder: {choices: [log-mel, smart-turn]}",
        "{}, or use `front: linear`",
        [
            f"{BASE}{TWO_ENCODERS}{LIGHT % ', speech_encoder: log-mel, front: linear'}"
            + SPACE % "model.speech_encoder: {choices: [log-mel, smart-turn]}",
        ],
    ),
    (
        MODEL % (", speech_layer: 2", ""),
        "the store holds {}; set {}: {layers: [..., {}], combine: concat}",
        [
            "features: {speech: {model: smart-turn, layers: [1, 2], combine: concat}}\n"
            + MODEL % (", speech_layer: 2", "")
        ],
    ),
    (
        MODEL % (", layer_mix: weighted", ""),
        "set `layers: [...]` and `combine: concat` of its encoder, or `layer_mix: none`",
        [
            "features: {speech: {model: smart-turn, layers: [1, 2], combine: concat}}\n"
            + MODEL % (", layer_mix: weighted", ""),
            MODEL % (", layer_mix: none", ""),
        ],
    ),
    (
        MODEL % (", speech_encoder: log-mel", ""),
        "list others in features.speech.additional, or remove `speech_encoder`",
        [TWO_ENCODERS + MODEL % (", speech_encoder: log-mel", ""), MODEL % ("", "")],
    ),
    (
        TWO_ENCODERS + MODEL % (", speech_encoder: logmel", ""),
        "has no encoder called `{}`; use one of {}",
        [
            TWO_ENCODERS + MODEL % (f", speech_encoder: {title}", "")
            for title in ("smart-turn", "log-mel")
        ],
    ),
    (
        TWO_ENCODERS + MODEL % (", speech_layer: 2", ""),
        "say which one the layer is of with `speech_encoder`",
        [TWO_ENCODERS + MODEL % (", speech_layer: 2, speech_encoder: smart-turn", "")],
    ),
    (
        "features: {speech: {model: log-mel, additional: [log-mel]}}\n",
        "give one of them another `name`, or remove it",
        [
            "features: {speech: {model: log-mel, additional: [{model: log-mel, name: b}]}}\n",
            "features: {speech: {model: log-mel}}\n",
        ],
    ),
    (
        "features: {speech: {model: log-mel, layers: [1]}}\n",
        "remove `layers`, or use an encoder that has some",
        [
            "features: {speech: {model: log-mel}}\n",
            "features: {speech: {model: smart-turn, layers: [1]}}\n",
        ],
    ),
    (
        "features: {speech: {model: logmel}}\n",
        "on this machine; did you mean `{}`?",
        ["features: {speech: {model: log-mel}}\n"],
    ),
    (
        "features: {speech: {model: untrained-electra}}\n",
        "`{}` is {}; use {}",
        [
            f"features: {{speech: {{model: {name}}}}}\n"
            for name in ("log-mel", "smart-turn", "untrained-wav2vec2")
        ],
    ),
    (
        MODEL % (", width: 65, heads: 2", ""),
        "use a width that is a multiple of {}",
        [MODEL % (", width: 66, heads: 2", "")],
    ),
    (
        "distillation: {loss: two-mse}\n" + MODEL % ("", ""),
        "the student and its control need `train.loss: mse`",
        ["distillation: {loss: two-mse}\n" + MODEL % ("", ", train: {loss: mse}")],
    ),
    (
        "distillation: {cka_weight: 1}\n" + MODEL % ("", ", train: {workers: 2}"),
        "it needs `workers: 1`, `accumulation: 1` and no `batch_frames`",
        ["distillation: {cka_weight: 1}\n" + MODEL % ("", ", train: {workers: 1}")],
    ),
    (
        "distillation: {cka_weight: 1}\nsearch: {workers_per_trial: 2}\n",
        "it needs trials of one worker",
        ["distillation: {cka_weight: 1}\nsearch: {workers_per_trial: 1}\n"],
    ),
    (
        "distillation: {cka_weight: 1}\n" + SPACE % "train.accumulation: {choices: [1, 2]}",
        "remove it from the space",
        ["distillation: {cka_weight: 1}\n" + SPACE % "model.dropout: {choices: [0, 0.1]}"],
    ),
    (
        "search: {metric: loss, space: {train.loss: {choices: [focal, cross-entropy]}}}\n",
        "choose another metric or remove it from search.space",
        [
            "search: {metric: uar, space: {train.loss: {choices: [focal, cross-entropy]}}}\n",
            "search: {metric: loss, space: {model.dropout: {choices: [0, 0.1]}}}\n",
        ],
    ),
    (
        "recipe: features-only\nsearch: {trials: 3}\n",
        "remove the section, or choose another `recipe`",
        ["recipe: features-only\n", "recipe: distillation\nsearch: {trials: 3}\n"],
    ),
    (
        "evaluation: {opensmile: [egemaps, egemaps]}\n",
        "a set is listed twice; remove one",
        ["evaluation: {opensmile: [egemaps]}\n"],
    ),
    (
        "recipe: features-only\nevaluation: {robustness: true}\n",
        "whose answers could change; remove the key, or set `recipe: distillation`",
        [
            "recipe: features-only\n",
            "recipe: distillation\nevaluation: {robustness: true}\n",
        ],
    ),
    (
        "name: 'a/b'\ncorpora: [{kind: demo}]\n",
        "must be usable as a folder name: no slashes and none of : * ?",
        ["name: a-b\ncorpora: [{kind: demo}]\n", "name: 감정 (2)\ncorpora: [{kind: demo}]\n"],
    ),
    ("recipe: distilation\n", "did you mean `{}`?", ["recipe: distillation\n"]),
    (
        "name: x\ncorpora: [{kind: emodb, path: /d, encoding: korean-windows}]\n",
        "use cp949, utf-8, cp1252 or another of Python's",
        [
            f"name: x\ncorpora: [{{kind: emodb, path: /d, encoding: {name}}}]\n"
            for name in ("cp949", "utf-8", "cp1252", "latin-1")
        ],
    ),
    (
        "features: {speech: {window_seconds: 8, overlap_seconds: 5}}\n",
        "is more than half of window_seconds: {}; use {} or less",
        [
            "features: {speech: {window_seconds: 8, overlap_seconds: 4}}\n",
            "features: {speech: {window_seconds: 8, overlap_seconds: 1}}\n",
        ],
    ),
    (
        "tracking: {champion: {model: m}}\n",
        "add `search: true`, or remove `champion`",
        ["tracking: {champion: {model: m}}\nsearch: true\n", "tracking: {}\n"],
    ),
    (
        "distillation: {loss: two-mse, standardize: true}\n" + MODEL % ("", ", train: {loss: mse}"),
        "set standardize: false, or use another loss",
        [
            "distillation: {loss: two-mse, standardize: false}\n"
            + MODEL % ("", ", train: {loss: mse}"),
            "distillation: {loss: kd, standardize: true}\n" + MODEL % ("", ""),
        ],
    ),
    (
        MODEL % ("", ", train: {loss: mse}"),
        "use distillation.loss two-mse, or another `train.loss`",
        [
            "distillation: {loss: two-mse}\n" + MODEL % ("", ", train: {loss: mse}"),
            MODEL % ("", ", train: {loss: focal}"),
        ],
    ),
    (
        SPACE % "model.preset: {choices: [small-student, tiny]}",
        "choose the preset in `students` and search its fields",
        [
            "students: [{name: a, model: {preset: small-student}}]\n"
            + SPACE % "model.width: {choices: [32, 64]}"
        ],
    ),
    (
        SPACE % "train.loss: {low: 0, high: 1}",
        "is not a number: give it `choices`",
        [SPACE % "train.loss: {choices: [focal, cross-entropy]}"],
    ),
    (
        SPACE % "model.layers: {low: 1, high: 4, step: 0.5}",
        "is an integer: give it a whole `step`",
        [SPACE % "model.layers: {low: 1, high: 4, step: 1}"],
    ),
    (
        "name: x\ncorpora: [{kind: demo, unlabelled: true}]\n",
        "add a corpus with labels to `corpora`",
        [BASE, WILD % ""],
    ),
    (
        WILD % ", labels: {a: happy}",
        "remove `{}`, or `unlabelled: true`",
        [WILD % "", WILD.replace(", unlabelled: true", "") % ", labels: {a: happy}"],
    ),
    (
        f"{WILD % ''}protocol: cross-corpus\n",
        "tests on the others; add a second one with labels",
        [f"{(WILD % '').replace(', unlabelled: true', '')}protocol: cross-corpus\n"],
    ),
    (
        f"{WILD % ''}distillation: {{weight: 0}}\n",
        "gives these clips no target; raise it, or remove the corpus",
        [
            f"{WILD % ''}distillation: {{weight: 0.5}}\n",
            f"{WILD % ''}distillation: {{weight: 0, hint_weight: 1}}\n",
            f"{BASE}distillation: {{weight: 0}}\n",
        ],
    ),
    (
        f"{WILD % ''}{MODEL % ('', ', train: {oversample: true}')}",
        "have none (`unlabelled: true`); set `oversample: false`, or remove the corpus",
        [
            f"{WILD % ''}{MODEL % ('', ', train: {oversample: false}')}",
            f"{BASE}{MODEL % ('', ', train: {oversample: true}')}",
        ],
    ),
    (
        "distillation: {sequence_weight: 1}\nstudents: [{name: a, model: small-student, train: "
        "{augmentation: {mixup: 0.2, mixup_of: pooled}}}]\n",
        "use `mixup_of: states`, or set `sequence_weight: 0`",
        [
            "distillation: {sequence_weight: 1}\nstudents: [{name: a, model: small-student, train: "
            "{augmentation: {mixup: 0.2, mixup_of: states}}}]\n",
            "distillation: {sequence_weight: 0}\nstudents: [{name: a, model: small-student, train: "
            "{augmentation: {mixup: 0.2, mixup_of: pooled}}}]\n",
        ],
    ),
    (
        f"{WILD % ''}{SPACE % 'train.oversample: {choices: [true, false]}'}",
        "have none (`unlabelled: true`); remove that key, or remove the corpus",
        [
            f"{WILD % ''}{SPACE % 'train.learning_rate: {low: 1e-4, high: 1e-3}'}",
            f"{BASE}{SPACE % 'train.oversample: {choices: [true, false]}'}",
        ],
    ),
    (
        "distillation: {sequence_weight: 1}\nstudents: [{name: a, model: small-student, train: "
        "{augmentation: {mixup_of: pooled}}}]\n"
        + SPACE
        % "train.augmentation.mixup: {low: 0.1, high: 0.5}",
        "search `mixup` of the states, or remove `sequence_weight`",
        [
            "distillation: {sequence_weight: 1}\n"
            + SPACE % "train.augmentation.mixup: {low: 0.1, high: 0.5}",
            SPACE % "train.augmentation.mixup: {low: 0.1, high: 0.5}",
        ],
    ),
    (
        f"{WILD % ''}recipe: features-only\n",
        "from clips without labels; remove the corpus, or set `recipe: distillation`",
        [f"{BASE}recipe: features-only\n", WILD % ""],
    ),
    (
        "distillation: {sequence_weight: 1}\nteacher: {model: {preset: text-student}}\n" + AUDIO,
        "choose models with a deep path that read the same, or set `sequence_weight: 0`",
        [
            "distillation: {sequence_weight: 1}\n" + AUDIO,
            "distillation: {sequence_weight: 0}\nteacher: text-student\n" + AUDIO,
        ],
    ),
    (
        "teacher: {model: small-teacher, models: [small-teacher]}\n",
        "stands in place of `model`, and both are set; keep one of them",
        ["teacher: {model: small-teacher}\n", "teacher: {models: [small-teacher]}\n"],
    ),
    ("serch: {trials: 3}\n", "; did you mean `{}`?", ["search: {trials: 3}\n"]),
    ("split: {by: speakers}\n", "; did you mean `{}`?", ["split: {by: speaker}\n"]),
]


def whole(text: str) -> str:
    return text if text.startswith("name:") else BASE + text


@pytest.mark.parametrize(("wrong", "advice", "followed"), JOB_FILES)
def test_advice_about_a_job_file(wrong: str, advice: str, followed: list[str]) -> None:
    with told(advice, JobFileError):
        jobfile.parse(whole(wrong), "x.yaml")
    for text in followed:
        jobfile.parse(whole(text), "x.yaml")


def rows(count: int, **columns: Callable[[int], str]) -> pa.Table:
    """A manifest's columns that the split reads."""
    values = {name: [make(i) for i in range(count)] for name, make in columns.items()}
    ids = {"utterance_id": [f"u{i}" for i in range(count)]}
    empty = {name: [""] * count for name in ("session", "speaker") if name not in columns}
    more = {"text": [f"t{i}" for i in range(count)], "audio_digest": ids["utterance_id"]}
    return pa.table({**ids, **values, **empty, **more})


def speakers(n: int) -> pa.Table:
    return rows(60, speaker=lambda i: f"s{i % n}", session=lambda i: f"s{i % n}")


def given(*parts: str) -> list[str]:
    return [parts[i % len(parts)] for i in range(60)]


LEAKY = {"by": "random", "allow_leak": True}
Rows = tuple[pa.Table, dict[str, Any], list[str] | None]
SPLITS: list[tuple[Rows, str, list[Rows]]] = [
    *[
        (
            (speakers(n), {"by": by}, None),
            "add data or raise the corpora's `limit`, or split single utterances with "
            "`split: {by: random, allow_leak: true}`",
            [(speakers(3), {"by": by}, None), (speakers(n), LEAKY, None)],
        )
        for n in (1, 2)
        for by in ("speaker", "session")
    ],
    (
        (rows(60, session=lambda i: f"s{i % 5}"), {"by": "speaker"}, None),
        "and {} has none; split by another key",
        [(rows(60, session=lambda i: f"s{i % 5}"), {"by": "session"}, None)],
    ),
    (
        (speakers(9), {"by": "column"}, given("train", "test", "holdout")),
        "fill the split column, or split by session",
        [
            (speakers(9), {"by": "column"}, given("train", "test", "valid")),
            (speakers(9), {"by": "session"}, None),
        ],
    ),
    (
        (speakers(9), {"by": "column"}, given("train", "valid")),
        "assign some rows to it in the split column, or split by session",
        [
            (speakers(9), {"by": "column"}, given("train", "valid", "test")),
            (speakers(9), {"by": "session"}, None),
        ],
    ),
    (
        (speakers(9), {"by": "column", "valid": 0.0}, given("train", "train", "test")),
        "assign some rows to it in the split column, or set split.valid to take it from train",
        [
            (speakers(9), {"by": "column"}, given("train", "valid", "test")),
            (speakers(9), {"by": "column", "valid": 0.15}, given("train", "train", "test")),
        ],
    ),
    (
        (
            rows(60, speaker=lambda i: f"p{i % 10}", session=lambda i: f"s{i % 15}"),
            {"by": "session"},
            None,
        ),
        "use `by: speaker`, which keeps speakers and their sessions together, or set split.",
        [
            (
                rows(60, speaker=lambda i: f"p{i % 10}", session=lambda i: f"s{i % 15}"),
                {"by": "session", "allow_leak": True},
                None,
            ),
            (
                rows(60, speaker=lambda i: f"p{i % 10}", session=lambda i: f"s{i % 30}"),
                {"by": "speaker"},
                None,
            ),
        ],
    ),
]


def split(case: Rows) -> None:
    table, config, parts = case
    made = split_rows(table, SplitConfig(**config), parts)
    refuse_leaks(leaks(table, made.part), SplitConfig(**config))


@pytest.mark.parametrize(("wrong", "advice", "followed"), SPLITS)
def test_advice_about_a_split(wrong: Rows, advice: str, followed: list[Rows]) -> None:
    with told(advice, UsageError):
        split(wrong)
    for case in followed:
        split(case)


def test_advice_about_a_job_file_that_cannot_be_found_or_used_on_a_cluster(tmp_path: Path) -> None:
    with told("give the path of a YAML file", UsageError):
        jobfile.load(tmp_path / "job.yml")
    (tmp_path / "job.yaml").write_text(BASE)
    with told("e.g. --workspace /shared/FOLDER", JobFileError):
        jobfile.load(tmp_path / "job.yaml", for_cluster=True)
    jobfile.load(tmp_path / "job.yaml", ['workspace="/shared/FOLDER"'], for_cluster=True)


def test_advice_about_a_workspace(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with told("workspace `{}` cannot be written ({}); choose another with --workspace"):
        Workspace(tmp_path / "file" / "ws").open()
    with (
        patch("multistill.workspace.fcntl.flock", side_effect=OSError(37, "No locks available")),
        told("without file locks ({}), so two runs could write the same artifact; choose another"),
    ):
        Workspace(tmp_path / "without").open()
    Workspace(tmp_path / "another").open()
    with told("and copy it to the bucket afterwards, e.g. with `aws s3 sync`", UsageError):
        Workspace("s3://bucket/ws")
    workspace = Workspace(tmp_path / "ws").open()
    artifact = workspace.make("kind", "0" * 16, lambda folder: {})
    (artifact.path / "done.json").write_text("{")
    with told("is damaged ({}); remove the folder {} and run the job again", MultistillError):
        workspace.find("kind", "0" * 16)
    for file in artifact.path.iterdir():
        file.unlink()
    artifact.path.rmdir()
    assert workspace.make("kind", "0" * 16, lambda folder: {}).path.is_dir()


def test_a_full_disk_is_told_and_the_same_command_continues(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws").open()

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "finished").write_text("")
        raise OSError(28, "No space left on device")

    with told("free some space and run the same command again: {} are kept", MultistillError):
        workspace.make("kind", "0" * 16, fill)
    made = workspace.make("kind", "0" * 16, lambda folder: {"kept": (folder / "finished").exists()})
    assert made.summary == {"kept": True}


@contextmanager
def closed_port() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def test_advice_about_the_address_of_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from multistill.tracking.tracker import open_tracker, tracking_uri

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for folder in (str(tmp_path), f"file://{tmp_path}"):
        with told("use sqlite:///FILE or the address of a server", UsageError):
            tracking_uri(TrackingConfig(uri=folder), tmp_path)
    for address in (f"sqlite:///{tmp_path}/m.db", "http://127.0.0.1:5000"):
        assert tracking_uri(TrackingConfig(uri=address), tmp_path) == address
    missing = TrackingConfig(uri="sqlite:////no/such/folder/m.db")
    with told("the folder {} does not exist; create it", MultistillError):
        open_tracker(missing, tmp_path, "job", "key", {})
    with closed_port() as port:
        config = TrackingConfig(uri=f"http://127.0.0.1:{port}")
        with told("tracking.uri, or set tracking.required: false to store", MultistillError):
            open_tracker(config, tmp_path, "job", "key", {})
        messages: list[str] = []
        tracker = open_tracker(
            config.model_copy(update={"required": False}),
            tmp_path,
            "job",
            "key",
            {},
            log=messages.append,
        )
        tracker.close()
        assert "the run continues" in messages[0]
