"""The job file as typed models: every section, every default, in the order of the data.

Reading YAML, `--set` and line numbers live in `multistill.jobfile`. This module knows
nothing else of ours, so any room may import it.

Fields marked `execution()` say how work is done, not what comes out (pool sizes,
retries). They are left out of fingerprints, so changing them reuses what exists.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

CLASSES = ("neutral", "happy", "surprise", "angry", "sad", "disgust", "fear")
"""Class order as published (Multi-Still). Votes, shares and logits all follow it."""

Modality = Literal["multimodal", "text", "audio"]


def execution(default: Any, **constraints: Any) -> Any:
    """A field that does not change any result, only how it is computed."""
    return Field(default, json_schema_extra={"execution": True}, **constraints)


def _file_name(value: str) -> str:
    if not value or value in {".", ".."} or any(c in value for c in '/\\\0:*?"<>|'):
        raise ValueError('must be usable as a folder name: no slashes and none of : * ? " < > |')
    return value


FolderName = Annotated[str, AfterValidator(_file_name)]


def _without_secret(value: str) -> str:
    if "@" in value and ":" in value.rpartition("@")[0].partition("://")[2]:
        raise ValueError(
            "holds a password, and a job file is recorded with every run; remove it and give it "
            "through the environment"
        )
    return value


Address = Annotated[str, AfterValidator(_without_secret)]


class Section(BaseModel):
    """A part of the job file. Unknown keys are errors; values are frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def identity(self) -> dict[str, Any]:
        """What decides the result: all fields but those marked `execution`, as JSON values."""
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("execution"):
                continue
            found[name] = _identity_of(getattr(self, name))
        return found


def _identity_of(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, list | tuple):
        return [_identity_of(item) for item in value]
    if isinstance(value, dict):
        return {key: _identity_of(item) for key, item in value.items()}
    return value


class ChampionConfig(Section):
    """The rule by which a searched student becomes the `champion` of MLflow's model registry."""

    model: str | None = Field(None, min_length=1, description="default: <job>-<student>")
    metric: Literal[
        "validation.macro_f1",
        "validation.uar",
        "validation.weighted_f1",
        "validation.accuracy",
        "validation.loss",
    ] = Field("validation.macro_f1", description="mean over the seeds; test chooses nothing")
    margin: float = Field(0.0, ge=0, description="by how much the champion must be beaten")

    @property
    def mode(self) -> Literal["min", "max"]:
        return "min" if self.metric == "validation.loss" else "max"


class TrackingConfig(Section):
    """The MLflow server. Credentials come from the environment only (MLFLOW_TRACKING_*)."""

    uri: Address | None = Field(
        None, description="server address, or sqlite:///file; default: a file in the workspace"
    )
    experiment: str | None = Field(None, description="default: the job's name")
    required: bool = Field(
        True, description="false: start although the server is away, and keep the record for later"
    )
    champion: ChampionConfig | None = Field(
        default_factory=ChampionConfig, description="null: register no model"
    )


class ResourcesConfig(Section):
    """Where Ray is and how much of it a local Ray may use."""

    address: Address | None = Field(
        None, description="a Ray cluster (`auto`, host:port); default: a Ray on this machine"
    )
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a local Ray")
    num_gpus: int | None = Field(None, ge=0, description="GPUs of a local Ray; default: all")
    object_store_mb: int | None = Field(None, ge=80)
    wait_for: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="what a cluster that adds nodes by itself shall grow to before the first "
        "stage, e.g. {GPU: 4}",
    )
    wait_minutes: float = Field(20.0, gt=0, description="for `wait_for`")


CorpusKind = Literal[
    "demo",
    "emodb",
    "kemdy19",
    "kemdy20",
    "aihub-dialogue",
    "aihub-scripted",
    "aihub-wellness",
    "table",
]


class CorpusConfig(Section):
    """One corpus. `table` reads any corpus from a CSV or Parquet table."""

    kind: CorpusKind
    path: str | None = Field(None, description="folder (for `table`: the table); `demo` has none")
    name: FolderName | None = Field(None, description="default: the kind")
    audio_root: str | None = Field(
        None, description="`table`: folder the audio paths start from; default: the table's folder"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="`table`: our column name -> the table's column name"
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="label of the corpus -> one of the seven classes"
    )
    limit: int | None = Field(None, ge=1, description="keep the first N utterances, for trials")

    @property
    def title(self) -> str:
        return self.name or self.kind

    @model_validator(mode="after")
    def _check(self) -> CorpusConfig:
        if self.kind == "demo" and self.path is not None:
            raise ValueError("the demo corpus is packaged: remove `path`")
        if self.kind != "demo" and not self.path:
            raise ValueError(f"a corpus of kind `{self.kind}` needs `path`")
        for source, target in self.labels.items():
            if target not in CLASSES:
                raise ValueError(
                    f"labels.{source}: `{target}` is not a class; use one of {', '.join(CLASSES)}"
                )
        return self


class SplitConfig(Section):
    """Who is tested on, how votes become labels, and caps against imbalance."""

    by: Literal["session", "speaker", "random", "column"] = "session"
    test: float = Field(0.2, ge=0.0, lt=1.0, description="share of groups (of rows if random)")
    valid: float = Field(0.15, ge=0.0, lt=1.0)
    folds: int = Field(5, ge=2, le=50, description="folds over the groups outside test")
    allow_leak: bool = Field(False, description="allow sessions or speakers on both sides")
    ties: Literal["soft", "drop", "first", "multi"] = "soft"
    max_per_class: dict[str, int] = Field(
        default_factory=dict, description="caps on training utterances, e.g. {neutral: 2000}"
    )

    @model_validator(mode="after")
    def _check(self) -> SplitConfig:
        if self.test + self.valid >= 1.0:
            raise ValueError("`test` and `valid` together leave nothing to train on")
        if self.by != "column" and self.test == 0.0:
            raise ValueError("`test: 0` leaves nothing to judge the models on; use 0.2, say")
        if self.by == "random" and not self.allow_leak:
            raise ValueError(
                "a random split puts the same speakers on both sides; use `by: session`, "
                "or set `allow_leak: true` and every table will say LEAKY SPLIT"
            )
        for name in self.max_per_class:
            if name not in CLASSES:
                raise ValueError(f"max_per_class: `{name}` is not one of {', '.join(CLASSES)}")
        return self


class SpeechEncoderConfig(Section):
    """Speech encoder: `log-mel`, `untrained-wav2vec2`, or a Hugging Face name or folder."""

    model: str = "log-mel"
    revision: str | None = None
    layers: list[int] = Field(
        default_factory=lambda: [-1],
        min_length=1,
        description="hidden states kept, as in output_hidden_states (0 is the input to layer 1)",
    )
    combine: Literal["mean", "concat"] = Field("mean", description="of several layers")
    max_seconds: float = Field(30.0, gt=0.1, description="longer clips are handled by `long_clips`")
    long_clips: Literal["cut", "window", "quarantine"] = "cut"
    window_seconds: float = Field(10.0, gt=0.5)
    overlap_seconds: float = Field(1.0, ge=0.0)
    precision: Literal["auto", "float32", "bfloat16"] = "float32"


class TextEncoderConfig(Section):
    """Text encoder: `untrained-electra`, or a Hugging Face name or folder."""

    model: str = "untrained-electra"
    revision: str | None = None
    layers: list[int] = Field(default_factory=lambda: [-1], min_length=1)
    combine: Literal["mean", "concat"] = "mean"
    max_tokens: int = Field(128, ge=8, le=512)


class FeaturesConfig(Section):
    """Encoding, done once, and the store it goes to."""

    speech: SpeechEncoderConfig = Field(default_factory=SpeechEncoderConfig)
    text: TextEncoderConfig = Field(default_factory=TextEncoderConfig)
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    max_quarantined: float = execution(
        0.05, ge=0.0, le=1.0, description="share of failed clips that stops the stage"
    )
    batch_seconds: float = execution(80.0, gt=0, description="audio seconds in one encoder batch")
    shard_seconds: float = execution(1200.0, gt=0, description="audio seconds in one shard")
    decoders: int | None = execution(None, ge=1, description="CPU decode workers; default: sized")
    encoders: int | None = execution(None, ge=1, description="encoder actors; default: sized")
    gpus_per_encoder: float | None = execution(None, ge=0)

    def side_by_side(self) -> dict[str, list[int]]:
        """Layers that the store holds one beside another, as `ModelSpec` names them."""
        return {
            f"{name}_layers": list(encoder.layers)
            for name, encoder in (("speech", self.speech), ("text", self.text))
            if encoder.combine == "concat" and len(encoder.layers) > 1
        }


class ModelConfig(Section):
    """A preset by name; every other key overrides one value of it (`multistill models`)."""

    preset: str
    fusion: Literal["crossmodal", "concat", "cross-attention", "mixer"] | None = None
    width: int | None = Field(None, ge=8)
    heads: int | None = Field(None, ge=1)
    layers: int | None = Field(None, ge=1)
    feedforward: int | None = Field(None, ge=8)
    classifier: int | None = Field(None, ge=8, description="width of the classifier's hidden layer")
    dropout: float | None = Field(None, ge=0.0, lt=1.0, description="in the transformer layers")
    classifier_dropout: float | None = Field(None, ge=0.0, lt=1.0)
    modality_dropout: float | None = Field(None, ge=0.0, lt=1.0)
    pooling: Literal["published", "mean", "attention"] | None = None
    audio_stride: int | None = Field(
        None, ge=1, description="neighbouring audio frames averaged into one before the head"
    )
    context_turns: int | None = Field(None, ge=0, le=32)
    speech_layer: int | None = Field(
        None, description="the one it reads of features.speech.layers (`combine: concat`)"
    )
    text_layer: int | None = Field(None, description="likewise, of features.text.layers")

    def overrides(self) -> dict[str, Any]:
        return {k: v for k, v in self.model_dump().items() if k != "preset" and v is not None}


class TrainConfig(Section):
    """How a teacher or a student is trained."""

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(64, ge=1, description="utterances per optimiser step, over all workers")
    accumulation: int = Field(1, ge=1, description="micro-batches per optimiser step and worker")
    learning_rate: float = Field(5e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps")
    clip_norm: float = Field(1.0, gt=0)
    loss: Literal["soft-cross-entropy", "cross-entropy", "mse", "focal"] = "soft-cross-entropy"
    label_source: Literal["shares", "winner"] = "shares"
    class_weights: Literal["none", "inverse", "effective"] = "none"
    oversample: bool = False
    metric: Literal["macro_f1", "uar", "weighted_f1", "accuracy", "loss"] = "macro_f1"
    patience: int | None = Field(None, ge=1, description="epochs without gain before stopping")
    max_frames: int | None = Field(None, ge=1, description="audio frames read; 512 as published")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = execution(False)
    batch_frames: int | None = execution(
        None, ge=1, description="padded audio frames computed at once; splits larger batches"
    )
    workers: int = execution(1, ge=1, description="data-parallel workers")
    gpus_per_worker: float | None = execution(None, ge=0)
    cpus_per_worker: float = execution(1.0, gt=0)
    max_failures: int = execution(2, ge=0, description="restarts from the last checkpoint")

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        gpus = self.gpus_per_worker
        if gpus is not None and 0 < gpus < 1 and self.workers > 1:
            raise ValueError(
                "a fraction of a GPU works for one worker only (NCCL refuses a shared GPU); "
                "set `workers: 1` or `gpus_per_worker: 1`"
            )
        return self


class TeacherConfig(Section):
    model: ModelConfig = Field(default_factory=lambda: ModelConfig(preset="small-teacher"))
    train: TrainConfig = Field(default_factory=TrainConfig)
    seeds: int = Field(1, ge=1, le=20, description="several seeds make an ensemble")


class DistillationConfig(Section):
    """weight * teacher's loss + (1 - weight) * label loss.

    The teacher's loss is T^2 * KL(teacher_T || student_T) (Hinton 2015) unless `loss` says
    otherwise. Losses on representations come on top of it, each with a weight of its own.
    """

    loss: Literal["hinton", "two-mse", "dkd", "dist"] = "hinton"
    temperature: float = Field(2.0, gt=0)
    weight: float = Field(0.5, ge=0, le=1)
    standardize: bool = Field(False, description="logit standardisation (Sun 2024)")
    dkd_alpha: float = Field(1.0, ge=0, description="`dkd`: weight of the target class part")
    dkd_beta: float = Field(
        2.0, ge=0, description="`dkd`: weight of the other classes; 8 in the paper, of 100 classes"
    )
    hint_weight: float = Field(
        0.0, ge=0, description="of the squared distance to the teacher's pooled state (FitNets)"
    )
    cka_weight: float = Field(
        0.0, ge=0, description="of 1 - linear CKA of the pooled states; wants batches of 64"
    )
    schedule: Literal["fixed", "rise", "fall"] = Field(
        "fixed", description="all weights over training: `rise` starts at 0, `fall` ends at 0"
    )
    schedule_share: float = Field(
        0.2, gt=0, le=1, description="share of the training that rises or falls"
    )
    targets: Literal["in-sample", "out-of-fold"] = Field(
        "out-of-fold",
        description="a training clip's target from a teacher that did not train on it (one more "
        "teacher a fold), or from the teacher of all clips, which is over-confident on them",
    )

    @property
    def reads_pooled(self) -> bool:
        """Whether the student learns from the teacher's representations."""
        return self.hint_weight > 0 or self.cka_weight > 0


class StudentConfig(Section):
    name: FolderName
    model: ModelConfig
    train: TrainConfig = Field(default_factory=TrainConfig)


class SearchParameter(Section):
    """One searched value: a range (`low`, `high`, `log`, `step`) or `choices`."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = Field(None, gt=0)
    choices: list[str | int | float | bool] | None = Field(None, min_length=1)
    when: dict[str, list[str | int | float | bool]] = Field(
        default_factory=dict,
        description="searched only where other searched names take one of these values, "
        "e.g. {distillation.loss: [hinton, dkd]}",
    )

    @model_validator(mode="after")
    def _check(self) -> SearchParameter:
        if self.choices is not None:
            if self.low is not None or self.high is not None:
                raise ValueError("give either `choices` or `low` and `high`, not both")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs `low` and `high`, or `choices`")
        if self.low >= self.high:
            raise ValueError(f"the range is empty or reversed: low {self.low} >= high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range needs `low` above 0")
        if self.log and self.step is not None:
            raise ValueError("`log` and `step` exclude each other")
        return self


def _default_space() -> dict[str, SearchParameter]:
    return {
        "distillation.temperature": SearchParameter(low=1.0, high=8.0),
        "distillation.weight": SearchParameter(low=0.05, high=0.9),
    }


class SearchConfig(Section):
    """Ray Tune with Optuna over one student. Looks at validation only."""

    enabled: bool = True
    student: str | None = Field(None, description="which student; default: the first")
    trials: int = Field(16, ge=1)
    epochs: int | None = Field(None, ge=1, description="budget of a trial; default: the student's")
    metric: Literal["macro_f1", "uar", "weighted_f1", "accuracy", "loss"] = "macro_f1"
    space: dict[str, SearchParameter] = Field(default_factory=_default_space, min_length=1)
    grace_epochs: int = Field(3, ge=1, description="ASHA stops no trial before")
    reduction: int = Field(3, ge=2)
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="random and grid are baselines; a grid needs `choices` everywhere"
    )
    startup_trials: int = Field(8, ge=1, description="random trials before the sampler learns")
    retrain: int = Field(1, ge=1, le=10, description="best trials retrained at full budget")
    seeds: int = Field(3, ge=1, le=20, description="of each retrained trial and of its control")
    second: Literal["parameters", "latency"] | None = Field(
        None, description="also keep this low: a Pareto front of the metric against it"
    )
    storage: Address | None = execution(
        None,
        description="database of the study (postgresql://user@host/name; the password comes from "
        "the environment); default: a journal file in the workspace",
    )
    concurrent: int | None = execution(None, ge=1, description="default: what the cluster holds")
    workers_per_trial: int = execution(
        1, ge=1, description="data-parallel workers of one trial; more than one start Ray Train"
    )
    cpus_per_trial: float = execution(1.0, gt=0, description="of each worker of a trial")
    gpus_per_trial: float | None = execution(None, ge=0, description="of each worker of a trial")
    max_failures: int = execution(1, ge=0)

    @model_validator(mode="after")
    def _check(self) -> SearchConfig:
        gpus = self.gpus_per_trial
        if gpus is not None and gpus % 1 and self.workers_per_trial > 1:
            raise ValueError(
                "a fraction of a GPU works for trials of one worker only (NCCL refuses a shared "
                "GPU); set `workers_per_trial: 1` or a whole `gpus_per_trial`"
            )
        return self

    @property
    def mode(self) -> Literal["min", "max"]:
        return "min" if self.metric == "loss" else "max"


class EvaluationConfig(Section):
    resamples: int = Field(1000, ge=100, description="bootstrap resamples of sessions")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    calibration_bins: int = Field(15, ge=2)
    latency_clips: int = Field(20, ge=0, description="clips timed one at a time; 0: no timing")


class JobConfig(Section):
    """The whole job file. Everything has a default but `name` and `corpora`."""

    name: FolderName
    seed: int = Field(1024, ge=0, lt=2**31)
    workspace: str = "workspace"
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig)
    corpora: list[CorpusConfig] = Field(min_length=1)
    split: SplitConfig = Field(default_factory=SplitConfig)
    features: FeaturesConfig = Field(default_factory=FeaturesConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    distillation: DistillationConfig = Field(default_factory=DistillationConfig)
    students: list[StudentConfig] = Field(
        default_factory=lambda: [
            StudentConfig(name="multimodal", model=ModelConfig(preset="small-student")),
            StudentConfig(name="text", model=ModelConfig(preset="small-text-student")),
            StudentConfig(name="audio", model=ModelConfig(preset="small-audio-student")),
        ],
        min_length=1,
    )
    search: SearchConfig = Field(default_factory=SearchConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @model_validator(mode="after")
    def _check(self) -> JobConfig:
        titles = [corpus.title for corpus in self.corpora]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"two corpora are called `{title}`; give one a `name`")
        names = [student.name for student in self.students]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two students are called `{name}`")
            if name == "teacher" or name.endswith(("-control", "-search")):
                raise ValueError(
                    f"a student cannot be called `{name}`: tables use `teacher`, `*-control` and "
                    "`*-search` for other models"
                )
        if self.split.valid == 0.0 and self.split.by != "column":
            raise ValueError(
                "split.valid: 0 leaves nothing to choose epochs, trials and winners on; use 0.15"
            )
        if self.search.student is not None and self.search.student not in names:
            raise ValueError(
                f"search.student: no student is called `{self.search.student}`; "
                f"there is {', '.join(names)}"
            )
        return self

    def searched_student(self) -> StudentConfig:
        wanted = self.search.student or self.students[0].name
        return next(student for student in self.students if student.name == wanted)
