"""The four comparisons: the command of every peer, and what it reached.

A peer's function writes its settings into the round's folder, which exists and is empty, and
returns the command; `score` reads what the command left. Neither is measured.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ours
import spec
import yaml

HERE = Path(__file__).resolve().parent
DRIVERS = HERE / "drivers"
Scores = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What all rounds share.

    Attributes:
        environments: the folder of `environments.sh`.
        folder: corpus.csv, audio/ (links to the recordings), encoder/, states/, workspace/.
        clips, epochs, trials, trial_epochs: the size of the comparison.
    """

    environments: Path
    folder: Path
    clips: int
    epochs: int
    trials: int
    trial_epochs: int

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus.csv"

    @property
    def encoder(self) -> Path:
        return self.folder / "encoder"

    @property
    def states(self) -> Path:
        return self.folder / "states"

    @property
    def workspace(self) -> Path:
        """multistill's, with the stored states and what stands before a search."""
        return self.folder / "workspace"

    @property
    def reference(self) -> Path:
        return self.folder / "reference.npz"

    def python(self, environment: str) -> str:
        return str(self.environments / environment / "bin" / "python")

    def settings(self, folder: Path, **more: Any) -> str:
        """Writes what a driver reads; returns the path."""
        path = folder / "settings.json"
        given = {"corpus": str(self.corpus), "states": str(self.states), "out": str(folder)}
        path.write_text(json.dumps({**given, **more}), encoding="utf-8")
        return str(path)


@dataclass(frozen=True)
class Peer:
    """
    Attributes:
        environment: name of its virtual environment.
        packages: those whose versions are written beside its figures.
        needs: makes what its command needs besides `Inputs`, once; not measured.
    """

    environment: str
    packages: tuple[str, ...]
    command: Callable[[Inputs, Path], list[str]]
    score: Callable[[Inputs, Path], Scores]
    needs: Callable[[Inputs], list[str]] | None = None


def _driver(environment: str, script: str, inputs: Inputs, *arguments: str) -> list[str]:
    return [inputs.python(environment), str(DRIVERS / script), *arguments]


# Hidden states


def _datasets(processes: int) -> Callable[[Inputs, Path], list[str]]:
    def command(inputs: Inputs, folder: Path) -> list[str]:
        given = inputs.settings(
            folder,
            encoder=str(inputs.encoder),
            out=str(folder / "states"),
            processes=processes,
        )
        return _driver("datasets", "extract_datasets.py", inputs, given)

    return command


def _s3prl(inputs: Inputs, folder: Path) -> list[str]:
    given = inputs.settings(folder, encoder=str(inputs.encoder), out=str(folder / "states"))
    return _driver("s3prl", "extract_s3prl.py", inputs, given)


def _autrainer_embed(inputs: Inputs, folder: Path) -> list[str]:
    given = inputs.settings(
        folder,
        encoder=str(inputs.encoder),
        audio=str(inputs.folder / "audio"),
        model=str(inputs.folder / "autrainer-encoder"),
        out=str(folder / "states"),
    )
    return _driver("autrainer", "extract_autrainer.py", inputs, given, "embed")


def _autrainer_model(inputs: Inputs) -> list[str]:
    folder = inputs.folder / "autrainer-settings"
    folder.mkdir(exist_ok=True)
    model = inputs.folder / "autrainer-encoder"
    shutil.rmtree(model, ignore_errors=True)
    given = inputs.settings(folder, encoder=str(inputs.encoder), model=str(model))
    return _driver("autrainer", "extract_autrainer.py", inputs, given, "prepare")


def _nkululeko(feats: str, model: str) -> Callable[[Inputs, Path], list[str]]:
    """An experiment; `feats` and `model` are the sections of these names."""

    def command(inputs: Inputs, folder: Path) -> list[str]:
        table = folder / "corpus.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "speaker", "emotion"])
            for row in spec.read_corpus(inputs.corpus):
                writer.writerow([row["audio_path"], row["speaker"], row["label"]])
        experiment = folder / "experiment.ini"
        experiment.write_text(
            f"""[EXP]
root = {folder}/
name = run
type = classification
[DATA]
databases = ['emodb']
emodb = {table}
emodb.type = csv
emodb.absolute_path = True
emodb.split_strategy = speaker_split
emodb.test_size = 30
target = emotion
labels = {sorted(spec.CLASSES.values())}
[FEATS]
{feats.format(encoder=inputs.encoder)}
[MODEL]
n_jobs = 2
{model}
""",
            encoding="utf-8",
        )
        return _driver("nkululeko", "run_nkululeko.py", inputs, str(experiment))

    return command


def _extracted(kind: str) -> Callable[[Inputs, Path], Scores]:
    """Agreement with the reference states of what a peer stored."""

    def score(inputs: Inputs, folder: Path) -> Scores:
        from reference import agreement, read_states

        names = [row["utterance_id"] for row in spec.read_corpus(inputs.corpus)]
        return agreement(read_states(kind, folder, names), inputs.reference)

    return score


# A head


def _lightning(inputs: Inputs, folder: Path) -> list[str]:
    given = inputs.settings(folder, epochs=inputs.epochs)
    return _driver("lightning", "head_lightning.py", inputs, given)


def _autrainer_train(
    inputs: Inputs, folder: Path, epochs: int, params: Mapping[str, Any], sweeper: Mapping[str, Any]
) -> list[str]:
    data = folder / "data"
    data.mkdir()
    (data / "default").symlink_to(inputs.states)
    rows = spec.read_corpus(inputs.corpus)
    for part, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        with (data / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["filename", "emotion"])
            for row in rows:
                if row["split"] == part:
                    writer.writerow([f"{row['utterance_id']}.npy", row["label"]])
    uar = "autrainer.metrics.UAR"
    dataset = {
        "id": "States",
        "_target_": "autrainer_parts.States",
        "path": str(data),
        "features_subdir": "default",
        "index_column": "filename",
        "target_column": "emotion",
        "file_type": "npy",
        "file_handler": "autrainer.datasets.utils.NumpyFileHandler",
        "criterion": "autrainer.criterions.CrossEntropyLoss",
        "metrics": [uar],
        "tracking_metric": uar,
        "transform": {"type": "tabular", "base": ["autrainer_parts.PadBatch"]},
    }
    model = {
        "id": "StatesHead",
        "_target_": "autrainer_parts.StatesHead",
        "dim": _dim(inputs),
        "classifier_dropout": 0.5,
        "transform": {"type": "tabular"},
    }
    defaults: list[Any] = ["_autrainer_", "_self_"]
    if sweeper:
        defaults.append({"override hydra/sweeper": "optuna"})
    config = {
        "defaults": defaults,
        "results_dir": str(folder / "results"),
        "experiment_id": "peers",
        "iterations": epochs,
        "save_frequency": epochs,
        "device": "cpu",
        "progress_bar": False,
        "hydra": {
            "sweeper": {
                **sweeper,
                "params": {
                    "+seed": spec.SEED,
                    "+batch_size": spec.BATCH,
                    "dataset": "States",
                    "model": "StatesHead",
                    "optimizer": "AdamW",
                    **params,
                },
            }
        },
    }
    for name, content in (
        ("dataset/States", dataset),
        ("model/StatesHead", model),
        ("config", config),
    ):
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    program = str(Path(inputs.python("autrainer")).with_name("autrainer"))
    return [program, "train"]


def _dim(inputs: Inputs) -> int:
    """Values per frame of the stored states."""
    import numpy as np

    first = next(inputs.states.glob("*.npy"))
    return int(np.load(first, mmap_mode="r").shape[1])


def _autrainer_head(inputs: Inputs, folder: Path) -> list[str]:
    params = {
        "+learning_rate": spec.LEARNING_RATE,
        "+optimizer.weight_decay": spec.WEIGHT_DECAY,
    }
    return _autrainer_train(inputs, folder, inputs.epochs, params, {})


def _autrainer_scores(inputs: Inputs, folder: Path) -> Scores:
    """Of the run that was best on validation."""
    runs = []
    for best in (folder / "results" / "peers" / "training").glob("*/_best/dev.yaml"):
        valid, test = (
            yaml.safe_load(path.read_text(encoding="utf-8"))["uar"]["all"]
            for path in (best, best.parents[1] / "_test" / "test_holistic.yaml")
        )
        runs.append((valid, test))
    if not runs:
        raise SystemExit(f"{folder}: autrainer left no run; read its log")
    valid, test = max(runs)
    return {"valid_uar": valid, "test_uar": test, "trials": len(runs)}


def _driver_scores(inputs: Inputs, folder: Path) -> Scores:
    found: Scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return found


# A search


def _ray_tune(inputs: Inputs, folder: Path) -> list[str]:
    given = inputs.settings(folder, epochs=inputs.trial_epochs, trials=inputs.trials)
    # Ray and Optuna are those of multistill.
    return _driver("multistill", "search_ray_tune.py", inputs, given)


def _autrainer_search(inputs: Inputs, folder: Path) -> list[str]:
    def between(low: float, high: float) -> str:
        return f"interval({low}, {high})"

    params = {
        "+learning_rate": f"tag(log, {between(*spec.LEARNING_RATES)})",
        "+optimizer.weight_decay": f"tag(log, {between(*spec.WEIGHT_DECAYS)})",
        "model.classifier_dropout": between(*spec.DROPOUTS),
    }
    sweeper = {"direction": "maximize", "n_trials": inputs.trials, "n_jobs": 1}
    return _autrainer_train(inputs, folder, inputs.trial_epochs, params, sweeper)


# openSMILE


def _nkululeko_scores(inputs: Inputs, folder: Path) -> Scores:
    # Of all recordings together, as in multistill's report; four digits.
    [path] = (folder / "run" / "results").glob("*_runs.txt")
    return {"test_uar": float(path.read_text(encoding="utf-8").splitlines()[0])}


OURS = ("multistill",)
WAV2VEC2 = "type = ['wav2vec2']\nwav2vec2.model = {encoder}"
FUNCTIONALS = f"type = ['os']\nset = {spec.OPENSMILE_SET}\nscale = standard"
SVM = f"type = svm\nkernel = linear\nC_val = {spec.SVM_C}\nlogo = {spec.SPEAKERS}"

TASKS: dict[str, dict[str, Peer]] = {
    "extract": {
        "multistill": Peer("multistill", OURS, ours.extract, ours.extracted),
        "s3prl": Peer("s3prl", ("s3prl",), _s3prl, _extracted("files")),
        "datasets": Peer("datasets", ("datasets",), _datasets(1), _extracted("datasets")),
        "datasets, 2 sorted": Peer("datasets", ("datasets",), _datasets(2), _extracted("datasets")),
        "autrainer": Peer(
            "autrainer", ("autrainer",), _autrainer_embed, _extracted("tensors"), _autrainer_model
        ),
        "nkululeko": Peer(
            "nkululeko",
            ("nkululeko",),
            _nkululeko(WAV2VEC2, "type = tree"),
            _extracted("nkululeko"),
        ),
    },
    "head": {
        "multistill": Peer("multistill", OURS, ours.head, ours.head_scores),
        "lightning": Peer("lightning", ("lightning",), _lightning, _driver_scores),
        "autrainer": Peer("autrainer", ("autrainer",), _autrainer_head, _autrainer_scores),
    },
    "search": {
        "multistill": Peer("multistill", OURS, ours.search, ours.search_scores),
        "ray tune": Peer("multistill", ("ray", "optuna"), _ray_tune, _driver_scores),
        "autrainer": Peer(
            "autrainer",
            ("autrainer", "hydra-optuna-sweeper", "optuna"),
            _autrainer_search,
            _autrainer_scores,
        ),
    },
    "opensmile": {
        "multistill": Peer("multistill", OURS, ours.opensmile, ours.opensmile_scores),
        "nkululeko": Peer(
            "nkululeko", ("nkululeko",), _nkululeko(FUNCTIONALS, SVM), _nkululeko_scores
        ),
    },
}
