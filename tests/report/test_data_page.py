"""The page that `prepare` leaves on a corpus."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.corpora import write_table
from helpers.generators.parts import write_wav

from multistill.cli import main
from multistill.report.files import DATA_PAGE

LABELS = ("sad", "happy", "angry")


def prepared(tmp_path: Path, protocol: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The page's text, of the file that `multistill run --until prepare` names."""
    rows = [f"{n}.wav,text,{LABELS[n // 6 % 3]},p{n % 6}" for n in range(36)]
    rows += ["gone.wav,text,sad,p0", "36.wav,text,<gloomy>,p1"]
    table = write_table(tmp_path / "corpus", rows)
    write_wav(tmp_path / "corpus" / "36.wav", 36)
    wild = write_table(tmp_path / "wild", ["50.wav,text,q1"], "audio_path,text,speaker")
    write_wav(tmp_path / "wild" / "50.wav", 50)
    job = tmp_path / "job.yaml"
    job.write_text(
        f"name: t\nworkspace: {tmp_path / 'w'}\ncorpora:\n  - {{kind: table, path: {table}}}\n"
        f"  - {{kind: table, path: {wild}, name: wild, unlabelled: true}}\n"
        f"split: {{by: speaker, test: 0.3, valid: 0.3}}\nprotocol: {protocol}\n"
    )
    with pytest.raises(SystemExit) as end:
        main(["run", str(job), "--until", "prepare"])
    assert end.value.code == 0
    [line] = [row for row in capsys.readouterr().out.splitlines() if row.startswith("data ")]
    page = Path(line.removeprefix("data").strip())
    assert page.name == DATA_PAGE
    text = page.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(https?:|//)', text), "it opens offline"
    return " ".join(re.sub(r"<[^>]+>", " ", text[text.index("<body") :]).split())


@pytest.mark.parametrize("protocol", ["holdout", "leave-one-out"])
def test_the_page_counts_what_was_read_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    shown = prepared(tmp_path, protocol, capsys)
    assert "table 36 clips, wild 1 clip; 7 speakers in 7 sessions" in shown
    assert "wild: 1 clip without labels" in shown
    assert "clips or rows left out: 2" in shown
    assert "no such file" in shown and "&lt;gloomy&gt;" in shown
    assert ("Cross-validation of 6 folds" in shown) is (protocol != "holdout")
    assert ("table/p3" in shown) is (protocol != "holdout"), "every fold with its sizes"
