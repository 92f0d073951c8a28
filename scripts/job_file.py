"""Write docs/job-file.md and the JSON schema of the job file, both from the typed config.

`--check` writes nothing and fails where one of them is out of date.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from typing import Any

import yaml
from generated import write_or_check
from pydantic_core import PydanticUndefined

from multistill.config import JobConfig, ModelConfig, Section
from multistill.config.schema import job_schema, sections, sections_of

SCHEMA = "multistill/jobs/job.schema.json"
PAGE = "docs/job-file.md"

HEAD = """\
# The job file: every key

<!-- written by scripts/job_file.py from multistill/config; `make format` updates it -->

A job file needs `name` and `corpora`; every other key has a default. An unknown key is an error
that names its line and the nearest key. On the command line, `--set teacher.train.epochs=3` sets
one key; an item of a list is named by its number (`--set corpora.0.path=FOLDER`) or its name
(`--set students.audio.train.epochs=3`).

`multistill init` writes a commented job file for a corpus. `multistill schema` prints the JSON
schema, with which an editor completes and checks keys: write it next to the job file and name it
in a comment. `multistill init` and `multistill jobs --copy FOLDER` do both.

    multistill schema > job.schema.json

```yaml
# yaml-language-server: $schema=job.schema.json
name: my-first
corpora:
  - kind: emodb
    path: /data/emodb
```

Names that YAML would read as numbers, dates or booleans are put in quotes:
`labels: {'01': neutral}`, `name: '2024-01-01'`.

Keys marked † say how the work is done, not what comes out: changing them computes nothing again.
"""


def kind_of(schema: dict[str, Any], annotation: Any) -> str:
    """A field's type in words, with its limits."""
    found = dict(sections_of(annotation))
    if found:
        suffix, section = next(iter(found.items()))
        link = f"section [{title(section)}](#{title(section).lower().replace(' ', '-')})"
        return {"[]": f"list, {link}", ".NAME": f"map of names, {link}"}.get(suffix, link)
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    return " or ".join(dict.fromkeys(map(_one_kind, options)))


def _one_kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of {kind_of(schema['items'], None)}"
    if kind == "object":
        return f"map of names to {kind_of(schema['additionalProperties'], None)}"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "boolean"}
    limits = [
        text.format(f"{schema[key]:.10g}")
        for key, text in (
            ("minimum", "≥ {}"),
            ("exclusiveMinimum", "> {}"),
            ("maximum", "≤ {}"),
            ("exclusiveMaximum", "< {}"),
        )
        if key in schema
    ]
    return " ".join([words[str(kind)], ", ".join(limits)]).strip()


def default_of(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, Section):
        return f"`{value.preset}`" if isinstance(value, ModelConfig) else "see there"
    if isinstance(value, list) and value and isinstance(value[0], Section):
        return ", ".join(f"`{item.name}`" for item in value)
    if isinstance(value, dict):
        return ", ".join(f"`{key}`" for key in value) or "empty"
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"


def meaning(field: Any) -> str:
    """The field's description, or the first sentence about its section."""
    inner = next((section for _, section in sections_of(field.annotation)), None)
    text = field.description or (summary(inner) if inner is not None else "")
    return text.replace("|", "\\|").replace("<", "&lt;")


def summary(section: type[Section]) -> str:
    return " ".join((inspect.getdoc(section) or "").split("\n\n")[0].split())


def title(section: type[Section]) -> str:
    """`SpeechEncoderConfig` as a heading: `Speech encoder`."""
    words = re.findall(r"[A-Z][a-z]+", re.sub("(Config|Section)$", "", section.__name__))
    return " ".join(words).capitalize()


def page() -> str:
    definitions = JobConfig.model_json_schema()
    lines = [HEAD]
    for section, places in sections().items():
        schema = definitions if section is JobConfig else definitions["$defs"][section.__name__]
        properties = schema.get("anyOf", [schema])[0]["properties"]
        where = ", ".join(f"`{place}`" for place in places) if places != [""] else "Top level"
        about = summary(section).replace("<", "&lt;")
        lines += [f"## {title(section)}", "", f"{where}: {about}", ""]
        if section.shorthand:
            given = " and ".join(f"`{name}`" for name in section.shorthand)
            lines += [f"A text in place of the section gives its {given}.", ""]
        lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        for name, field in section.model_fields.items():
            extra = field.json_schema_extra
            mark = " †" if isinstance(extra, dict) and extra.get("execution") else ""
            cells = (
                f"`{name}`{mark}",
                kind_of(properties[name], field.annotation),
                default_of(field),
                meaning(field),
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    schema = json.dumps(job_schema(), indent=2, ensure_ascii=False) + "\n"
    return write_or_check({PAGE: page(), SCHEMA: schema}, arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
