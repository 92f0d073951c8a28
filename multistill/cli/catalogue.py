"""Commands that show what there is: models, recipes, packaged jobs, and the doctor."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from multistill.cli.options import Json, Overrides, WorkspaceFolder, load_job, print_json
from multistill.errors import UsageError

SCHEMA = "job.schema.json"


def models(as_json: Json = False) -> None:
    """List the model presets with their trainable parameters."""
    from multistill.models.catalogue import catalogue, render

    rows = catalogue()
    if as_json:
        print_json(rows)
    else:
        render(rows)


def labels(
    job: Annotated[
        Path | None,
        typer.Argument(metavar="[JOB.yaml]", help="show what this job makes of each emotion"),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """List the emotions, the spellings that are recognised, and the class that each becomes."""
    from multistill.config import LabelsConfig

    rows = (load_job(job, overrides, None).labels if job else LabelsConfig()).table()
    if as_json:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("emotion", "class", "also written"):
        table.add_column(title, no_wrap=title != "also written", overflow="fold")
    for row in rows:
        table.add_row(row["emotion"], row["class"] or "-", ", ".join(row["spellings"]))
    Console(highlight=False, markup=False, emoji=False).print(table)


def recipes(as_json: Json = False) -> None:
    """List the recipes that a job file can name with `recipe:`."""
    from multistill.pipeline.recipes import RECIPES, get_recipe

    rows = [{"recipe": name, "summary": get_recipe(name).summary} for name in RECIPES]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print(f"{row['recipe']:<16}{row['summary']}")


def jobs(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="e.g. emodb; default: all")
    ] = None,
    copy: Annotated[
        Path | None, typer.Option("--copy", metavar="FOLDER", help="write the job files there")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the packaged example job files, or copy them to start from."""
    packaged = _packaged_jobs()
    for name in names or []:
        if name not in packaged:
            raise UsageError(
                f"there is no packaged job `{name}`; there is {', '.join(sorted(packaged))}"
            )
    chosen = {name: packaged[name] for name in names or sorted(packaged)}
    if copy is not None:
        _copy(chosen, copy)
    rows = [{"job": name, "summary": _summary(text)} for name, text in chosen.items()]
    if as_json:
        print_json(rows)
    elif copy is not None:
        for name in chosen:
            print(copy / f"{name}.yaml")
    else:
        width = 2 + max(map(len, chosen))
        for row in rows:
            print(f"{row['job']:<{width}}{row['summary']}")


def init(
    job: Annotated[
        Path | None,
        typer.Argument(metavar="[JOB.yaml]", help="file to write; default: named by the corpus"),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", metavar="PATH", help="folder or table; default: the demo corpus"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite an existing file")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented job file for a corpus: its kind, its columns, a split that fits."""
    from multistill.pipeline import jobfile
    from multistill.pipeline.job_template import job_name, job_text

    found = []
    if corpus is not None:
        from multistill.corpora.detect import find_corpora

        corpus = corpus.expanduser().absolute()
        found = find_corpora(corpus)
    file = job or Path(f"{job_name(corpus)}.yaml")
    if file.exists() and not force:
        raise UsageError(f"{file} exists; give another name, or --force to overwrite it")
    text = job_text(job_name(corpus), found, file)
    jobfile.parse(text, str(file))  # what is written is valid
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    copy_schema(file.parent)
    open_points = [sentence for one in found for sentence in one.missing]
    if as_json:
        kinds = [one.settings["kind"] for one in found] or ["demo"]
        print_json({"job": str(file), "corpora": kinds, "to_do": open_points})
        return
    print(file)
    for sentence in open_points:
        print(f"to do: {sentence}")


def schema(as_json: Json = False) -> None:
    """Print the JSON schema of the job file, with which editors complete and check it."""
    from multistill.config.schema import job_schema

    print_json(job_schema())


def _packaged_jobs() -> dict[str, str]:
    folder = resources.files("multistill") / "jobs"
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    }


def _summary(text: str) -> str:
    """First line of a job file's head comment."""
    return text.partition("\n")[0].lstrip("# ")


def _copy(files: dict[str, str], folder: Path) -> None:
    existing = [folder / f"{name}.yaml" for name in files if (folder / f"{name}.yaml").exists()]
    if existing:
        raise UsageError(f"{existing[0]} exists; remove it, or choose another --copy folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    copy_schema(folder)


def copy_schema(folder: Path) -> None:
    """Write the schema that job files name in their head, next to them."""
    source = resources.files("multistill") / "jobs" / SCHEMA
    (folder / SCHEMA).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")


def doctor(
    job: Annotated[
        Path | None, typer.Argument(metavar="[JOB.yaml]", help="also check what this job needs")
    ] = None,
    overrides: Overrides = None,
    workspace: WorkspaceFolder = None,
    as_json: Json = False,
) -> None:
    """Check machine, Ray, GPU, disk, encoders and tracking server; print how to fix problems."""
    from multistill.doctor import examine, render

    findings = examine(load_job(job, overrides, workspace) if job else None)
    if as_json:
        print_json([finding.as_json() for finding in findings])
    else:
        render(findings)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
