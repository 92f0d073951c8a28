"""The step that encodes distorted copies of the training clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multistill.pipeline.folds import folds_of
from multistill.pipeline.step import Artifacts, Step, StepRun


class Copies(Step):
    """Audio states of `features.augmentation.copies` distorted copies of every training clip.

    An artifact of its own beside the feature store, which stays as it is: validation, test,
    probes and soft targets never read copies. Under cross-validation, the clips that any fold
    trains on are encoded once.
    """

    name = "copies"
    artifact = "copies"
    sections = frozenset({"features"})
    uses_ray = True

    def config(self) -> Any:
        return self.job.features.augmentation.identity()

    def reads(self) -> Sequence[str]:
        return ("manifest", "features")

    def inputs(self, artifacts: Artifacts) -> Mapping[str, str]:
        from multistill.corpora.prepare import folder_listing

        # Which recording a copy gets depends on all that the folder holds.
        folders = self.job.features.augmentation.folders()
        listed = {name: folder_listing(Path(folder)) for name, folder in folders.items()}
        return {**super().inputs(artifacts), **listed}

    def problems(self) -> Sequence[str]:
        from multistill.audio.augmentation import audio_files

        return [
            f"features.augmentation.{name}: there is no audio file in {folder}; give a folder of "
            f"recordings, or remove `{name}`, and sounds are generated"
            for name, folder in self.job.features.augmentation.folders().items()
            if next(audio_files(Path(folder)), None) is None
        ]

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.corpora.manifest import MANIFEST
        from multistill.features.augmented import encode_copies

        return encode_copies(
            [fold.artifacts["manifest"].path / MANIFEST for fold in folds_of(run.artifacts)],
            run.artifacts["features"].path,
            self.job.features,
            run.out,
            run.logger,
        )
