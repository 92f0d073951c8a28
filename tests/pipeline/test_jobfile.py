"""The job file: every problem at once, with its line and the nearest right name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers.paths import ROOT

from multistill.config import JobConfig
from multistill.errors import JobFileError, UsageError
from multistill.pipeline import jobfile

JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
SMALL = "name: t\ncorpora:\n  - kind: demo\n"
STUDENT_MSE = "students: [{name: a, model: small-student, train: {loss: mse}}]\n"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_shipped_job_file_validates(path: Path) -> None:
    job = jobfile.load(path)
    assert job.name == path.stem
    assert "multistill run" in path.read_text(), "the head comment shows the command"


def test_shipped_jobs_are_found() -> None:
    assert {p.stem for p in JOBS} >= {"demo", "emodb", "kemdy", "paper", "search"}


def problems(text: str, *overrides: str) -> list[tuple[int | None, str]]:
    with pytest.raises(JobFileError) as caught:
        jobfile.parse(text, "job.yaml", overrides)
    return caught.value.problems


def test_unknown_key_names_its_line_and_the_nearest_key() -> None:
    found = problems(SMALL + "distillation:\n  tempreature: 3\n")
    assert found == [
        (5, "unknown key `distillation.tempreature`; did you mean `temperature`?"),
    ]


def test_unknown_key_inside_a_list_item() -> None:
    found = problems(
        SMALL + "students:\n  - name: a\n    model: {preset: small-student}\n    trian: {}\n"
    )
    assert found[0][0] == 7
    assert "did you mean `train`?" in found[0][1]


def test_all_problems_are_reported_in_the_order_of_the_file() -> None:
    found = problems("name: t\ncorpora:\n  - kind: emdb\n    path: x\nsplit:\n  test: 3\nsead: 1\n")
    assert [line for line, _ in found] == [3, 6, 7]
    assert "did you mean `emodb`?" in found[0][1]
    assert "did you mean `seed`?" in found[2][1]


def test_missing_sections_are_named() -> None:
    assert problems("seed: 1\n") == [(1, "`name` is missing"), (1, "`corpora` is missing")]


def test_problems_that_packages_report_carry_lines_too() -> None:
    found = problems(SMALL + "teacher:\n  model:\n    preset: small-teecher\n")
    assert found[0][0] == 5
    assert "small-teacher" in found[0][1]


def test_random_split_is_refused_unless_the_leak_is_allowed() -> None:
    found = problems(SMALL + "split: {by: random}\n")
    assert "allow_leak" in found[0][1]
    assert jobfile.parse(SMALL + "split: {by: random, allow_leak: true}\n", "j").split.allow_leak


def test_reversed_search_range_is_refused() -> None:
    text = SMALL + "search:\n  space:\n    distillation.temperature: {low: 8, high: 1}\n"
    found = problems(text)
    assert found[0][0] == 6
    assert "reversed" in found[0][1]


def test_repeated_key_is_refused() -> None:
    assert problems(SMALL + "seed: 1\nseed: 2\n") == [(5, "duplicate key `seed`")]


def test_broken_yaml_names_the_line() -> None:
    found = problems("name: t\ncorpora: [\n")
    assert found[0][0] is not None
    assert "not valid YAML" in found[0][1]


def test_a_yaml_tag_runs_no_code() -> None:
    found = problems("name: !!python/object/apply:os.getcwd []\ncorpora: []\n")
    assert "not valid YAML" in found[0][1]


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no job file"):
        jobfile.load(tmp_path / "none.yaml")


def test_overrides_reach_sections_lists_and_named_items() -> None:
    job = jobfile.parse(
        SMALL + "students:\n  - name: a\n    model: {preset: small-student}\n",
        "job.yaml",
        ["seed=7", "corpora.0.limit=5", "students.a.train.epochs=3", "split.test=0.3"],
    )
    assert job.seed == 7
    assert job.corpora[0].limit == 5
    assert job.students[0].train.epochs == 3
    assert job.split.test == 0.3


@pytest.mark.parametrize("override", ["seed", "=3", "corpora.4.limit=5", "name.x.y=3"])
def test_unusable_override_is_refused(override: str) -> None:
    with pytest.raises(UsageError):
        jobfile.parse(SMALL, "job.yaml", [override])


def test_paths_become_absolute_and_addresses_stay(tmp_path: Path) -> None:
    job = jobfile.parse(
        "name: t\ncorpora:\n  - {kind: emodb, path: data/x}\ntracking: {uri: 'http://h:5000'}\n",
        "job.yaml",
    )
    assert job.corpora[0].path == str(Path("data/x").absolute())
    assert Path(job.workspace).is_absolute()
    assert job.tracking.uri == "http://h:5000"


def test_resolved_job_reads_back_as_the_same_job() -> None:
    job = jobfile.parse(SMALL, "job.yaml")
    assert JobConfig.model_validate(yaml.safe_load(job.to_yaml())) == job


def test_identity_ignores_where_and_how_but_not_what() -> None:
    job = jobfile.parse(SMALL, "j")
    elsewhere = jobfile.parse(
        SMALL + "workspace: /tmp/w\nresources: {num_cpus: 3}\nteacher: {train: {workers: 4}}\n"
        "features: {encoders: 2}\n",
        "j",
    )
    other = jobfile.parse(SMALL + "teacher: {train: {epochs: 4}}\n", "j")
    assert job.identity() == elsewhere.identity()
    assert job.identity() != other.identity()


def test_fraction_of_a_gpu_is_for_one_worker_only() -> None:
    found = problems(SMALL + "teacher: {train: {workers: 2, gpus_per_worker: 0.5}}\n")
    assert "one worker only" in found[0][1]


def test_passwords_are_refused_and_not_repeated() -> None:
    found = problems(SMALL + "tracking: {uri: 'https://me:geheim@host:5000'}\n")
    assert found[0][0] == 4
    assert "environment" in found[0][1]
    assert "geheim" not in found[0][1]


@pytest.mark.parametrize("key", ["distillation.loss", "train.loss", "train.accumulation"])
@pytest.mark.parametrize(
    "choices",
    ["[kd, no]", "[no]", "[kd, 010]", "[3, kd]", "[dist, 1.5]", "[two-mse, no]"],
)
@pytest.mark.parametrize("more", ["", "distillation: {loss: dist}\n", STUDENT_MSE])
def test_choices_of_mixed_types_are_told_in_words(key: str, choices: str, more: str) -> None:
    found = problems(f"{SMALL}{more}search: {{space: {{{key}: {{choices: {choices}}}}}}}\n")
    assert any(sentence.startswith("search.space") for _, sentence in found)
    assert not any("distillation.loss False" in sentence for _, sentence in found)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("name: t\ncorpora: [{kind: demo}]\nworkspace: ~nobody-here/x\n", "workspace"),
        ("name: t\ncorpora: [{kind: emodb, path: ~nobody-here/x}]\n", "corpora.0.path"),
        (
            "name: t\ncorpora: [{kind: table, path: x.csv, audio_root: ~nobody-here}]\n",
            "corpora.0.audio_root",
        ),
    ],
)
def test_a_home_folder_that_is_none_is_refused(text: str, place: str) -> None:
    ((_, sentence),) = problems(text)
    assert sentence.startswith(f"{place}: there is no home folder for the `~` of `~nobody-here")


@pytest.mark.parametrize(
    "model", ["a" * 300, "~nobody-here/x", "a/" * 3000, "a\0b", "\ud800"], ids=ascii
)
def test_any_name_of_a_model_can_be_looked_up(model: str) -> None:
    features = {"speech": model, "text": model}
    job = jobfile.parse(
        yaml.safe_dump({"name": "t", "corpora": [{"kind": "demo"}], "features": features}), "j"
    )
    assert job.features.speech.model == model


def test_an_override_changes_one_of_two_places_that_share_a_yaml_alias() -> None:
    text = SMALL + (
        "teacher: {train: &t {epochs: 4}}\n"
        "students:\n"
        "  - {name: a, model: {preset: small-student}, train: *t}\n"
        "  - {name: b, model: {preset: small-student}, train: *t}\n"
    )
    job = jobfile.parse(text, "j", ["students.b.train.epochs=9"])
    assert [job.teacher.train.epochs, *(s.train.epochs for s in job.students)] == [4, 4, 9]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("distillation: {loss: two-mse}\n", "train.loss: mse"),
        *(
            (
                f"distillation: {{loss: {loss}}}\n"
                "students: [{name: a, model: {preset: small-student}, train: {loss: mse}}]\n",
                f"distillation.loss {loss} compares logits",
            )
            for loss in ("kd", "dkd", "dist")
        ),
        (
            "distillation: {loss: two-mse, standardize: true}\n"
            "students: [{name: a, model: {preset: small-student}, train: {loss: mse}}]\n",
            "standardize is of logits",
        ),
        (
            "students: [{name: a, model: {preset: small-student}}]\n"
            "search: {space: {train.loss: {choices: [mse, focal]}}}\n",
            "compares logits",
        ),
        ("students: [{name: teacher, model: {preset: small-student}}]\n", "cannot be called"),
        ("students: [{name: a-control, model: {preset: small-student}}]\n", "cannot be called"),
        ("split: {test: 0}\n", "nothing to evaluate"),
        ("split: {valid: 0}\nsearch: true\n", "nothing to choose on, and `search` chooses"),
        (
            "split: {valid: 0}\nteacher: {train: {patience: 3}}\n",
            "`teacher.train.patience` chooses",
        ),
        ("split: {max_per_class: {neutral: -3}}\n", "max_per_class.neutral: -3 is not a number"),
        (
            "distillation: {loss: dist}\nstudents:\n"
            "  - {name: a, model: {preset: small-student}, train: {workers: 2}}\n",
            "workers: 1",
        ),
        (
            "distillation: {cka_weight: 1}\nstudents:\n"
            "  - {name: a, model: {preset: small-student}, train: {batch_frames: 99}}\n",
            "distillation.cka_weight correlates over the batch",
        ),
        (
            "distillation: {cka_weight: 1}\nstudents:\n"
            "  - {name: a, model: {preset: small-student}, train: {accumulation: 2}}\n",
            "accumulation: 1",
        ),
        (
            "distillation: {loss: dist}\n"
            "search: {space: {train.accumulation: {low: 1, high: 2}}}\n",
            "`train.accumulation` splits",
        ),
        ("tracking: {champion: true}\n", "add `search: true`, or remove `champion`"),
        ("tracking: {champion: {margin: 0.1}}\nsearch: false\n", "this job has none"),
        (
            "search: {metric: loss, space: {train.loss: {choices: [focal, cross-entropy]}}}\n",
            "another `train.loss` measure another loss",
        ),
        (
            "search: {metric: loss, space: {train.label_source: {choices: [shares, winner]}}}\n",
            "another `train.label_source` measure another loss",
        ),
    ],
)
def test_what_would_fail_after_hours_is_refused_by_validation(text: str, says: str) -> None:
    assert any(says in sentence for _, sentence in problems(SMALL + text))


@pytest.mark.parametrize("written", ["true", "false", "{enabled: true}"])
def test_set_reaches_into_a_search_that_is_written_as_a_switch(written: str) -> None:
    text = f"name: x\ncorpora: [{{kind: demo}}]\nsearch: {written}\n"
    search = jobfile.parse(text, "x.yaml", ["search.trials=3"]).search
    assert (search.trials, search.enabled) == (3, written != "false")
