"""File resolution: names and links never lead out of the corpus folder."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from helpers.generators.parts import write_wav
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.audio.digests import Digests
from multistill.corpora.audio_headers import read_header
from multistill.corpora.paths import FileResolver, list_files


def test_names_are_found_in_any_unicode_form(tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = root / "녹음" / unicodedata.normalize("NFD", "하루")
    folder.mkdir(parents=True)
    on_disk = folder / unicodedata.normalize("NFD", "가.wav")
    write_wav(on_disk, 1)
    assert FileResolver(root).resolve("녹음/하루/가.wav") == str(on_disk)
    with pytest.raises(ValueError, match="no such file"):
        FileResolver(root).resolve("녹음/하루/나.wav")
    write_wav(tmp_path / "out.wav", 1)
    (root / unicodedata.normalize("NFD", "밖")).symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leaves the corpus folder"):
        FileResolver(root).resolve("밖/out.wav")


def test_a_link_to_itself_is_reported_as_unreadable(tmp_path: Path) -> None:
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    assert list_files(tmp_path, tmp_path) == {"loop.wav": True}
    assert "cannot be opened" in str(read_header(str(tmp_path / "loop.wav"), Digests()))
    with pytest.raises(ValueError, match="no such file"):
        FileResolver(tmp_path).resolve("loop.wav")


names = st.lists(
    st.sampled_from(["..", ".", "in", "door", "a.wav", "out.wav", "", "/"]), min_size=1, max_size=6
).map("/".join)


@settings(max_examples=300, deadline=None)
@given(name=names)
def test_no_name_resolves_to_a_file_outside_the_root(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    base = tmp_path_factory.getbasetemp() / "resolver"
    if not base.exists():
        (base / "root/in").mkdir(parents=True)
        write_wav(base / "root/a.wav", 1)
        write_wav(base / "root/in/a.wav", 2)
        write_wav(base / "out.wav", 3)
        (base / "root/door").symlink_to(base)
        (base / "root/in/out.wav").symlink_to(base / "out.wav")
    try:
        path = Path(FileResolver(base / "root").resolve(name))
    except ValueError:
        return
    assert path.resolve().is_relative_to((base / "root").resolve()) and path.is_file()


def test_a_link_inside_the_root_resolves_like_a_file(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 1)
    (tmp_path / "b.wav").symlink_to(tmp_path / "a.wav")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "no.wav")
    assert list_files(tmp_path, tmp_path) == {"a.wav": True, "b.wav": True}
    assert FileResolver(tmp_path).resolve("b.wav") == str(tmp_path / "b.wav")
    with pytest.raises(ValueError, match="no such file"):
        FileResolver(tmp_path).resolve("gone.wav")
