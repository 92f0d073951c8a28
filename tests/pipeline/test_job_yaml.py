"""What YAML refuses, or reads as something else than is meant, is told in words that work."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.config import JobConfig
from multistill.errors import JobFileError, UsageError
from multistill.pipeline import jobfile

SMALL = "name: t\ncorpora:\n  - kind: demo\n"
JOBS = sorted((ROOT / "multistill" / "jobs").glob("*.yaml"))
NOT_TEXT = [
    *("0", "1", "-3", "+4", "007", "01", "010", "0x1F", "0b11", "1_000"),
    *("1.5", "1.", ".5", "1.0e+3", ".inf", "-.INF", ".nan"),
    *("12:30", "1:30.5", "2024-01-01", "2024-01-01 10:00:00", "2024-13-45"),
    *("no", "No", "NO", "yes", "on", "off", "true", "False"),
    *("null", "NULL", "~"),
]
"""Scalars that YAML 1.1 takes for numbers, dates, booleans or nothing."""


def problems(text: str, *overrides: str) -> list[tuple[int | None, str]]:
    with pytest.raises(JobFileError) as caught:
        jobfile.parse(text, "job.yaml", overrides)
    return caught.value.problems


@pytest.mark.parametrize("written", NOT_TEXT)
@pytest.mark.parametrize(
    "template",
    [
        "name: t\ncorpora:\n  - kind: demo\n    labels:\n      {}: neutral\n",
        "name: t\ncorpora:\n  - {{kind: demo, labels: {{fine: sad, {}: neutral}}}}\n",
        "name: t\ncorpora:\n- kind: table\n  path: t.csv\n  labels: {{{}: sad}}",
    ],
)
def test_a_key_that_yaml_takes_for_something_else_is_to_be_quoted(
    written: str, template: str
) -> None:
    text = template.format(written)
    ((line, sentence),) = problems(text)
    assert line is not None
    assert written in text.splitlines()[line - 1]
    assert f"the key `{written}`" in sentence
    assert "found: None" not in sentence
    advised = re.search(r"put it in quotes: (.*)$", sentence)
    assert advised
    job = jobfile.parse(template.format(advised[1]), "job.yaml")
    assert written in job.corpora[0].labels


@pytest.mark.parametrize("written", NOT_TEXT)
@pytest.mark.parametrize(
    ("template", "place"),
    [
        ("name: {}\ncorpora: [{{kind: demo}}]\n", "name"),
        ("name: t\ncorpora: [{{kind: demo, name: {}}}]\n", "corpora.0.name"),
        (SMALL + "students:\n  - name: {}\n    model: small-student\n", "students.0.name"),
        (SMALL + "features: {{text: {{revision: {}}}}}\n", "features.text.revision"),
    ],
)
def test_a_name_that_yaml_takes_for_something_else_is_to_be_quoted(
    written: str, template: str, place: str
) -> None:
    text = template.replace("{}", written).replace("{{", "{").replace("}}", "}")
    nullable = place in {"corpora.0.name", "features.text.revision"}
    if nullable and written in {"null", "NULL", "~"}:
        jobfile.parse(text, "job.yaml")
        return
    found = [problem for problem in problems(text) if "put it in quotes: " in problem[1]]
    line, sentence = found[-1]
    assert line is not None
    assert written in text.splitlines()[line - 1]
    assert place in sentence
    advised = re.search(r"put it in quotes: (.*)$", sentence)
    assert advised
    if ":" not in written:  # not usable as a folder name, which is another problem
        jobfile.parse(text.replace(f": {written}", f": {advised[1]}"), "job.yaml")


@pytest.mark.parametrize("written", [word for word in NOT_TEXT if ":" not in word])
def test_a_name_given_by_set_is_to_be_quoted_for_the_shell_too(written: str) -> None:
    for line, sentence in problems(SMALL, f"name={written}"):
        assert line is None, "the file is not wrong"
        advised = re.search(r"from a shell: (--set .*)$", sentence)
        assert advised, sentence
        _, override = shlex.split(advised[1])
        assert jobfile.parse(SMALL, "job.yaml", [override]).name == written


@pytest.mark.parametrize("written", ["010", "0_7", "-017", "1:30", "190:20:30"])
@pytest.mark.parametrize("key", ["seed", "features.speech.max_seconds", "search.trials"])
def test_a_number_that_is_not_the_one_it_looks_like_is_refused(written: str, key: str) -> None:
    *sections, last = key.split(".")
    text = SMALL + "".join(f"{'  ' * n}{name}:\n" for n, name in enumerate(sections))
    text += f"{'  ' * len(sections)}{last}: {written}\n"
    sentences = [sentence for _, sentence in problems(text)]
    assert any(f"{key}: YAML reads `{written}` as the number" in sentence for sentence in sentences)
    assert any(written in sentence for _, sentence in problems(SMALL, f"{key}={written}"))


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "true", "false"])
@pytest.mark.parametrize(
    "override",
    [
        "seed={}",
        "teacher.train.epochs={}",
        "split.test={}",
        "features.speech.layers=[{}]",
        "search.space.x={{low: {}, high: 2}}",
        "split.max_per_class={{sad: {}}}",
        "resources.wait_for={{GPU: {}}}",
    ],
)
def test_a_boolean_does_not_count_as_a_number(word: str, override: str) -> None:
    found = problems(SMALL, override.format(word))
    assert any(f"YAML reads `{word}` as" in sentence for _, sentence in found)


def test_a_boolean_where_one_belongs_is_fine() -> None:
    job = jobfile.parse(SMALL + "tracking: {required: no}\n", "job.yaml")
    assert job.tracking.required is False


@pytest.mark.parametrize("word", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize("key", ["distillation.temperature", "features.batch_seconds"])
def test_numbers_are_finite(word: str, key: str) -> None:
    assert any("finite" in sentence for _, sentence in problems(SMALL, f"{key}={word}"))


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("features: {speech: wav2vec2}", "features: {speech: {model: wav2vec2}}"),
        ("features: {text: a/b}", "features: {text: {model: a/b}}"),
        ("teacher: small-teacher", "teacher: {model: {preset: small-teacher}}"),
        ("teacher: {model: small-teacher}", "teacher: {model: {preset: small-teacher}}"),
        (
            "students: [small-student, small-audio-student]",
            "students: [{name: small-student, model: {preset: small-student}}, "
            "{name: small-audio-student, model: {preset: small-audio-student}}]",
        ),
        (
            "students: [{name: a, model: small-student}]",
            "students: [{name: a, model: {preset: small-student}}]",
        ),
    ],
)
def test_a_text_in_place_of_a_section_is_its_model(short: str, long: str) -> None:
    assert jobfile.parse(SMALL + short, "j") == jobfile.parse(SMALL + long, "j")


def test_set_reaches_into_a_section_that_is_written_as_its_model() -> None:
    text = SMALL + "teacher: small-teacher\nstudents: [small-student]\n"
    overrides = ["teacher.train.epochs=3", "students.small-student.model.width=32"]
    job = jobfile.parse(text, "j", overrides)
    assert (job.teacher.model.preset, job.teacher.train.epochs) == ("small-teacher", 3)
    assert (job.students[0].model.preset, job.students[0].model.width) == ("small-student", 32)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("teacher: small-techer\n", 4, "did you mean `small-teacher`"),
        ("distillation: kd\n", 4, "`kd` stands where a section belongs; its keys are loss, "),
        ("students: small-student\n", 4, "stands where a list belongs"),
        ("students: {name: a}\n", 4, "a section stands where a list belongs"),
        ("teacher:\n", 4, "`teacher` has no value"),
        ("split:\n  test:\n", 5, "`split.test` has no value"),
        ("students: []\n", 4, "at least 1 item"),
        ("students: [1]\n", 4, "YAML reads `1` as the number 1; put it in quotes: '1'"),
        ("students: [007]\n", 4, "YAML reads `007` as the number 7; put it in quotes: '007'"),
        ("features: {speech: no}\n", 4, "YAML reads `no` as false; put it in quotes"),
        ("split: by: speaker\n", 4, "in braces: `{key: value}`"),
        ("resources: {address: 10:30}\n", 4, "put it in quotes: '10:30'"),
        ("search: {space: {train.weight_decay: {choices: [010]}}}\n", 4, "without leading zeros"),
        ("split: {by: [session]}\n", 4, "split.by: a list is not one of session, speaker"),
        ("seed: [1]\n", 4, "a list stands where a single value belongs"),
        ("split: {test: many}\n", 4, "(found: `many`)"),
        ("search: {space: {a: {choices: [null]}}}\n", 4, "has no value"),
        ("? [a, b]\n: 1\n", 4, "a key must be text"),
        ("split: {? {a: b} : 3}\n", 4, "split: a key must be text"),
        ("~: 3\n", 4, "unknown key `~`"),
        ("1: 3\n", 4, "unknown key `1`"),
        ("split: {? : 3}\n", 4, "split: there is no key before the colon"),
        ("'': 3\n", 4, "there is no key before the colon"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_in_words(text: str, line: int, says: str) -> None:
    found = problems(SMALL + text)
    assert [number for number, sentence in found if says in sentence] == [line]
    assert not any("Node(" in sentence or "None" in sentence for _, sentence in found)


@pytest.mark.parametrize(
    "text", ["? [a, b]\n: 1\n", "~: 3\n", "1: 3\n", "no: 3\n", "'': 3\n", "split: {~: 3}\n"]
)
def test_a_key_that_nothing_can_make_right_is_told_once(text: str) -> None:
    ((_, sentence),) = problems(SMALL + text)
    assert "in quotes" not in sentence


def test_a_number_that_is_misread_where_only_numbers_belong_is_not_to_be_quoted() -> None:
    ((_, sentence),) = problems(SMALL + "split: {max_per_class: {neutral: 010}}\n")
    assert sentence.endswith("write the number without leading zeros and colons")


@pytest.mark.parametrize("levels", [6, 12, 40])
@pytest.mark.parametrize("merge", [False, True])
def test_aliases_of_aliases_are_not_followed_without_end(levels: int, merge: bool) -> None:
    first = "{a: 1}" if merge else "[1, 1]"
    text = f"name: t\ncorpora: []\nx0: &x0 {first}\n"
    for level in range(levels):
        items = ", ".join([f"*x{level}"] * 10)
        text += f"x{level + 1}: &x{level + 1} " + (
            f"{{<<: [{items}]}}\n" if merge else f"[{items}]\n"
        )
    started = time.perf_counter()
    ((_, sentence),) = problems(text)
    assert "stands for more than 100000 values" in sentence
    assert time.perf_counter() - started < 5  # seconds; following them takes hours


BROKEN = [
    ("name: t\n\tcorpora: []\n", 2, "indented with a tab"),
    ("name: t\ncorpora:\n\t- kind: demo\n", 3, "indented with a tab"),
    ("name: t\ncorpora:\n  - kind: demo\n  \t path: x\n", 4, "indented with a tab"),
    ("name: t\n  corpora: []\n", 2, "indented further than the line above"),
    ("name: t\ncorpora:\n  - kind: emodb\n      path: x\n", 4, "indented further"),
    ("name: t\ncorpora:\n    - kind: emodb\n   path: x\n", 4, "like none of the lines above"),
    ("  name: t\ncorpora: []\n", 2, "further left than the first key"),
    ("name: a: b\n", 1, "must be in quotes"),
    ("name:t\ncorpora: []\n", 1, "no space after the colon"),
    ("name: t\ncorpora\nseed: 1\n", 2, "no `: ` after its key"),
    ("name: t\ncorpora: [{kind: demo}\nseed: 1\n", 2, "the `[` that opens in this line"),
    ("name: t\nsplit: {by: speaker\nseed: 1\n", 2, "the `{` that opens in this line"),
    ("name: 't\ncorpora: []\n", 1, "quote that opens in this line is never closed"),
    ('name: "t\ncorpora: []\n', 1, "quote that opens in this line is never closed"),
    ("name: @t\n", 1, "starts with `@` must be in quotes"),
    ("name: `t\n", 1, "starts with ``` must be in quotes"),
    ("name: %t\n", 1, "starts with `%` must be in quotes"),
    ("name: t\ncorpora: [{kind: emodb, path: *.wav}]\n", 2, "must be in quotes"),
    ("name: *other\n", 1, "there is no anchor `&other`"),
    ("name: !important\n", 1, "the tag `!important` is not allowed"),
    ("name: =\n", 1, "in quotes"),
    ('name: "C:\\data"\n', 1, "use single quotes"),
    ("name: 'a' b\n", 1, "put the whole text in quotes"),
    ("name: t\n---\nname: u\n", 2, "one job per file"),
    ("name: t\x07\n", 1, "U+0007"),
    ("name: &a [*a]\ncorpora: []\n", None, "an alias stands inside"),
    (f"name: t\ncorpora: []\nseed: {'9' * 5000}\n", 3, "limit"),
    (f"name: t\ncorpora: []\nseed: 0x{'f' * 6000}\n", 3, "limit"),
    (f"name: t\ncorpora: []\nseed: 1{':1' * 3000}\n", 3, "limit"),
    (f"name: t\nsplit: {{test: 0.{'1' * 5000}}}\n", 2, "limit"),
    ("name: t\nseed: 0x_\n", 2, "`0x_` is not a number"),
    ("name: t\nsplit: !!set {a, b}\n", 2, "the tag `!!set` is not allowed"),
    ("name: t\nsplit: !!omap [a: 1]\n", 2, "the tag `!!omap` is not allowed"),
    ("name: t\nworkspace: !!binary aGVsbG8=\n", 2, "the tag `!!binary` is not allowed"),
    ("name: t\nseed: !!bool x\n", 2, "the tag `!!bool` is not allowed"),
    ("name: t\nseed: !!map [1]\n", 2, "the tag `!!map` is not allowed"),
    ("name: t\nworkspace: <<\n", 2, "put other text in quotes"),
    ("name: t\n<<: 3\n", 2, "`<<` merges a section"),
    ("name:\tt\ncorpora: []\n", 1, "there is a tab in this line"),
    ("name: t\t# comment\ncorpora: []\n", 1, "there is a tab in this line"),
    ("name: t\ncorpora:\n  -\tkind: demo\n", 3, "there is a tab in this line"),
    ("name: t\ncorpora:\n  - \tkind: demo\n", 3, "there is a tab in this line"),
    ("name: t\ncorpora: [{kind: demo,\tlimit: 3}]\n", 2, "there is a tab in this line"),
    ("name\t: t\n", 1, "there is a tab in this line"),
    ("name: 'a'\tb\n", 1, "there is a tab in this line"),
]


@pytest.mark.parametrize(("text", "line", "says"), BROKEN)
def test_broken_yaml_is_told_in_words(text: str, line: int | None, says: str) -> None:
    ((found, sentence),) = problems(text)
    assert sentence.startswith("not valid YAML: ")
    assert (found, says in sentence) == (line, True), (found, sentence)


INDENTED = [
    (path, number)
    for path in JOBS
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines())
    if re.match(r" +[^ #]", line)
]


@pytest.mark.parametrize(
    ("path", "number"), INDENTED[::5], ids=[f"{p.stem}:{n + 1}" for p, n in INDENTED[::5]]
)
def test_a_tab_in_the_indentation_of_any_line_is_named(path: Path, number: int) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number] = re.sub("^ +", "\t", lines[number])
    assert problems("\n".join(lines))[0] == (
        number + 1,
        "not valid YAML: this line is indented with a tab, which YAML does not allow; indent with "
        "spaces, two per level",
    )


@pytest.mark.parametrize("shift", [-1, 1, 3])
def test_a_shifted_line_is_told_without_the_parsers_words(shift: int) -> None:
    for path, number in INDENTED:
        lines = path.read_text(encoding="utf-8").splitlines()
        line = lines[number]
        lines[number] = f"{' ' * shift}{line}" if shift > 0 else line[1:]
        try:
            jobfile.parse("\n".join(lines), "job.yaml")
        except JobFileError as error:
            for _, sentence in error.problems:
                assert "block" not in sentence
                assert "mapping values" not in sentence


@given(st.text(alphabet=st.sampled_from("abk:-,[]{}&*!|>'\"%@`#?=<. \n\t01")))
def test_no_text_raises_anything_but_a_job_file_error(text: str) -> None:
    for source in (text, SMALL + text, f"{SMALL}teacher: {text}"):
        try:
            assert isinstance(jobfile.parse(source, "job.yaml"), JobConfig)
        except JobFileError as error:
            assert all(sentence for _, sentence in error.problems)
    try:
        jobfile.parse(SMALL, "job.yaml", [f"teacher={text}"])
    except UsageError as error:
        assert str(error)


def test_a_file_in_another_encoding_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes("name: t\ncorpora:\n  - {kind: demo, name: 감정}\n".encode("cp949"))
    with pytest.raises(JobFileError, match=r"job\.yaml:3: not UTF-8 text; save the file as UTF-8"):
        jobfile.load(path)


PRINTABLE = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])


@settings(max_examples=15)
@given(
    st.dictionaries(st.text(PRINTABLE, min_size=1, max_size=6), st.sampled_from(["sad", "angry"]))
)
def test_a_recorded_job_reads_back_whatever_its_names_are(labels: dict[str, str]) -> None:
    corpus = {"kind": "emodb", "path": "/data", "labels": {**labels, "01": "sad", "no": "sad"}}
    job = JobConfig.model_validate({"name": "007", "corpora": [corpus], "workspace": "/w"})
    assert jobfile.parse(job.to_yaml(), "recorded.yaml") == job


def test_aliases_and_merges_still_work() -> None:
    text = SMALL + (
        "teacher: {train: &t {epochs: 4}}\n"
        "students:\n  - {name: b, model: small-student, train: {<<: *t, patience: 2}}\n"
    )
    values: Any = jobfile.parse(text, "j").students[0].train
    assert (values.epochs, values.patience) == (4, 2)
