"""The version of multistill comes from its metadata, and importing the package stays cheap."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

import pytest

import multistill
from multistill import provenance


@pytest.fixture(autouse=True)
def no_cached_version(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(provenance.VERSION_VARIABLE, raising=False)
    provenance.version.cache_clear()
    yield
    provenance.version.cache_clear()


def test_the_version_is_the_one_of_the_installed_package() -> None:
    assert multistill.__version__ == metadata.version("multistill")


def test_an_uploaded_package_has_the_version_of_the_submitter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(provenance.VERSION_VARIABLE, "9.8.7")
    assert multistill.__version__ == "9.8.7"


def test_a_source_tree_that_is_not_installed_has_an_unknown_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_found(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_found)
    assert multistill.__version__ == "0+unknown"


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import multistill; "
        "print(*set(sys.modules) - before)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["multistill"], result.stderr


def test_an_unknown_attribute_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'versoin'"):
        multistill.versoin  # noqa: B018
