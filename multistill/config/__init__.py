"""The job file as typed models: every section, every default, in the order of the data.

`multistill.pipeline.jobfile` reads YAML, `--set` and line numbers. This package imports nothing
else of multistill but `errors`, so any package may import it.

Fields marked `execution()` say how work is done, not what comes out (pool sizes, retries).
They are excluded from fingerprints, so changing them reuses what exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from multistill.config.augmentation import AugmentationConfig, CopiesConfig
from multistill.config.base import Section
from multistill.config.continual import ContinualConfig
from multistill.config.data import (
    CorpusConfig,
    CorpusKind,
    FeaturesConfig,
    OneSpeechEncoderConfig,
    SpeechEncoderConfig,
    SplitConfig,
    TextEncoderConfig,
)
from multistill.config.encoder_training import EncoderTrainingConfig
from multistill.config.evaluation import EvaluationConfig
from multistill.config.label_shares import LabelSharesConfig
from multistill.config.labels import CLASSES, LabelsConfig
from multistill.config.models import (
    DistillationConfig,
    ModelConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
    TrainSection,
)
from multistill.config.names import FolderName
from multistill.config.notify import NotifyConfig
from multistill.config.pretrain import PretrainConfig
from multistill.config.protocol import ProtocolConfig
from multistill.config.report import ReportConfig
from multistill.config.resources import ResourcesConfig
from multistill.config.search import TEMPERATURE, SearchConfig, SearchParameter
from multistill.config.tasks import DIMENSIONS, TasksConfig
from multistill.config.tracking import ChampionConfig, TrackingConfig

__all__ = [
    "CLASSES",
    "DIMENSIONS",
    "AugmentationConfig",
    "ChampionConfig",
    "ContinualConfig",
    "CopiesConfig",
    "CorpusConfig",
    "CorpusKind",
    "DistillationConfig",
    "EncoderTrainingConfig",
    "EvaluationConfig",
    "FeaturesConfig",
    "FolderName",
    "JobConfig",
    "LabelSharesConfig",
    "LabelsConfig",
    "ModelConfig",
    "NotifyConfig",
    "OneSpeechEncoderConfig",
    "PretrainConfig",
    "ProtocolConfig",
    "ReportConfig",
    "ResourcesConfig",
    "SearchConfig",
    "SearchParameter",
    "Section",
    "SpeechEncoderConfig",
    "SplitConfig",
    "StudentConfig",
    "TasksConfig",
    "TeacherConfig",
    "TextEncoderConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainSection",
]


_RESERVED = re.compile(
    r"teacher(-\d+)?(-fold\d+)?|majority baseline|linear probe.*|(egemaps|compare), .*"
    r"|.*-(control|search(-\d+)?|seed\d+|labels[\d.]+|cv\d+)",
    re.IGNORECASE,
)


class JobConfig(Section):
    """The whole job file. Everything has a default but `name` and `corpora`."""

    name: FolderName = Field(description="of the job, its folder of reports and its MLflow runs")
    recipe: str = Field(
        "distillation", description="the method: which stages run (`multistill recipes`)"
    )
    seed: int = Field(
        1024, ge=0, lt=2**31, description="of trainings and resamples; the split has its own"
    )
    seeds: int = Field(
        1,
        ge=1,
        le=20,
        description="how often everything is trained, from `seed` on: teacher, soft targets, "
        "students and controls; results are means over them",
    )
    workspace: str = Field("workspace", description="folder that all artifacts go to")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    notify: NotifyConfig = Field(default_factory=NotifyConfig)
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig)
    tasks: TasksConfig = Field(default_factory=lambda: TasksConfig(classes=1.0))
    labels: LabelsConfig = Field(default_factory=LabelsConfig)
    corpora: list[CorpusConfig] = Field(min_length=1)
    split: SplitConfig = Field(default_factory=SplitConfig)
    protocol: ProtocolConfig = Field(default_factory=ProtocolConfig)
    features: FeaturesConfig = Field(default_factory=FeaturesConfig)
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig)
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
    continual: ContinualConfig = Field(default_factory=ContinualConfig)
    label_shares: LabelSharesConfig = Field(
        default_factory=lambda: LabelSharesConfig(enabled=False)
    )
    search: SearchConfig = Field(default_factory=lambda: SearchConfig(enabled=False))
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)

    @field_validator("search", "label_shares", mode="before")
    @classmethod
    def _is_not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            raise ValueError(
                f"the section is empty; write `{info.field_name}: true` to have it with all "
                "defaults, or remove it"
            )
        return value

    @field_validator("search", mode="after")
    @classmethod
    def _searches_what_matters(cls, search: SearchConfig, info: ValidationInfo) -> SearchConfig:
        """The default space without the temperature where there are no classes to soften."""
        tasks = info.data.get("tasks")
        if tasks is None or tasks.classes is not None or "space" in search.model_fields_set:
            return search
        space = {name: each for name, each in search.space.items() if name != TEMPERATURE}
        return search.model_copy(update={"space": space})

    @model_validator(mode="after")
    def _check(self) -> JobConfig:
        titles = [corpus.title for corpus in self.corpora]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"two corpora are called `{title}`; give one a `name`")
        labelled = [corpus for corpus in self.corpora if not corpus.unlabelled]
        if not labelled:
            raise ValueError(
                "every corpus is `unlabelled`, and the teacher needs labels to learn from; add a "
                "corpus with labels to `corpora`"
            )
        if self.protocol.kind == "cross-corpus" and len(labelled) < 2:
            raise ValueError(
                "protocol: cross-corpus trains on each corpus and tests on the others; add a "
                "second one with labels to `corpora`"
            )
        names = [student.name for student in self.students]
        folded = [name.casefold() for name in names]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two students are called `{name}`")
            if folded.count(name.casefold()) > 1:
                raise ValueError(
                    f"another student is called `{name}` but for its capitals; choose another name"
                )
            if _RESERVED.fullmatch(name):
                raise ValueError(
                    f"a student cannot be called `{name}`: tables use `teacher`, `teacher-N`, "
                    "`teacher-foldN`, `majority baseline`, `linear probe`, `*-control`, "
                    "`*-search`, `*-search-N`, `*-seedN`, `*-labelsN` and `*-cvN` for other models"
                )
        if self.split.valid == 0.0 and self.split.by != "column":
            for name in self._chosen_on_validation():
                raise ValueError(
                    f"split.valid: 0 leaves nothing to choose on, and `{name}` chooses; use 0.15, "
                    f"or remove `{name}`"
                )
        if self.search.student is not None and self.search.student not in names:
            raise ValueError(
                f"search.student: no student is called `{self.search.student}`; "
                f"there is {', '.join(names)}"
            )
        for name in self.label_shares.students or []:
            if name not in names:
                raise ValueError(
                    f"label_shares.students: no student is called `{name}`; "
                    f"there is {', '.join(names)}"
                )
        return self

    def _chosen_on_validation(self) -> Iterator[str]:
        """Settings of the job that mean nothing without validation clips."""
        if self.recipe == "continual":
            yield "recipe: continual"
        if self.search.enabled:
            yield "search"
        trainings = {
            "teacher": self.teacher.train,
            **{f"students.{index}": each.train for index, each in enumerate(self.students)},
        }
        for place, train in trainings.items():
            for name in ("patience", "metric"):
                if getattr(train, name) is not None:
                    yield f"{place}.train.{name}"
            if train.select_window > 1:
                yield f"{place}.train.select_window"
            if train.loss == "one-vs-rest":
                yield f"{place}.train.loss: one-vs-rest"
        if self.evaluation.risk is not None:
            yield "evaluation.risk"

    def label_problems(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Where the job names a class that `labels.classes` does not have, and what to do."""
        classes = self.labels.classes
        for index, corpus in enumerate(self.corpora):
            for source, target in corpus.labels.items():
                if target not in classes:
                    yield (
                        ("corpora", index, "labels", source),
                        f"corpora.{index}.labels.{source}: `{target}` is not a class of the job; "
                        f"use one of {', '.join(classes)}",
                    )
        for name in self.split.max_per_class:
            if name not in classes:
                yield (
                    ("split", "max_per_class", name),
                    f"split.max_per_class: `{name}` is not one of {', '.join(classes)}",
                )

    def identity(self) -> dict[str, Any]:
        """What decides the results: not where the job runs, is stored, recorded or shown."""
        return {
            name: value
            for name, value in super().identity().items()
            if name not in {"workspace", "tracking", "notify", "resources", "report"}
        }

    def to_yaml(self) -> str:
        """The resolved job as a job file, defaults included."""
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def searched_student(self) -> StudentConfig:
        wanted = self.search.student or self.students[0].name
        return next(student for student in self.students if student.name == wanted)

    def students_with_label_shares(self) -> list[StudentConfig]:
        wanted = self.label_shares.students
        return [each for each in self.students if wanted is None or each.name in wanted]
