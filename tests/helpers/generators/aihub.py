"""Folder trees of the three AI Hub corpora, with expected records."""

from __future__ import annotations

import csv
import io
import random
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.generators.parts import CLASSES, Truth, sentence, write_wav
from multistill.corpora.records import Utterance

YEARS = ("4차년도", "5차년도", "5차년도_2차")

# Spellings of each class in the dialogue corpus; case varies from row to row.
_DIALOGUE_NAMES = {
    "neutral": ("Neutral", "neutral", "NEUTRAL"),
    "happy": ("Happiness", "happiness"),
    "surprise": ("Surprise", "surprise"),
    "angry": ("Angry", "angry", "anger"),
    "sad": ("Sadness", "sadness", "sad"),
    "disgust": ("Disgust", "disgust"),
    "fear": ("Fear", "fear"),
}


def _csv(rows: Sequence[Sequence[str]], encoding: str) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    return out.getvalue().encode(encoding)


def make_dialogue(
    root: Path, rows_per_table: int = 24, years: Sequence[str] = YEARS, seed: int = 0
) -> Truth:
    """감정 분류를 위한 대화 음성 데이터셋; with 13 rows per table or more, every glitch occurs."""
    truth = Truth(root)
    rng = random.Random(seed)
    root.mkdir(parents=True)
    used: list[str] = []
    for order, year in enumerate(years):
        # The second archive has NFD names, as made on a Mac, and its recordings one folder down.
        on_disk = unicodedata.normalize("NFD", year) if order == 1 else year
        folder = root / on_disk / ("5차_wav" if order == 1 else "")
        folder.mkdir(parents=True)
        strength = "4번감정세기" if order == 0 else "4번 감정세기"
        table = _Dialogue(truth, rng, f"{year}.csv", folder, order)
        table.header = ["wav_id", "발화문", "상황"]
        for rater in range(1, 6):
            table.header += [f"{rater}번 감정", strength if rater == 4 else f"{rater}번 감정세기"]
        table.header += ["나이", "성별"]
        for index in range(rows_per_table):
            table.add(index, used)
        (root / f"{on_disk}.csv").write_bytes(_csv([table.header, *table.rows], "cp949"))
    return truth


class _Dialogue:
    """One yearly table under construction."""

    def __init__(
        self, truth: Truth, rng: random.Random, name: str, folder: Path, order: int
    ) -> None:
        self.truth, self.rng, self.name, self.folder = truth, rng, name, folder
        self.order = order
        self.header: list[str] = []
        self.rows: list[list[str]] = []

    def add(self, index: int, used: list[str]) -> None:
        rng, truth = self.rng, self.truth
        name = f"{rng.getrandbits(96):024x}"
        text, age, gender = sentence(rng), rng.randint(20, 59), rng.choice(("male", "female"))
        chosen: list[str | None] = [rng.choice(CLASSES) for _ in range(5)]
        strengths = [str(rng.randint(0, 2)) for _ in range(5)]
        cells = [rng.choice(_DIALOGUE_NAMES[label or ""]) for label in chosen]
        source = f"{self.name}:{index + 2}"
        wav, reason, kinds, short = True, "", [], False
        if index == 1:
            name, reason = used[0] if used else name, "duplicate id" if used else ""
        elif index == 2:
            wav, reason = False, "no such file"
        elif index == 3:
            cells[1], chosen[1], kinds = "bored", None, ["unknown vote"]
        elif index == 4:
            cells[2] = strengths[2] = ""
            chosen[2] = None
        elif index == 5:
            strengths[3], kinds = "", ["no intensity"]
        elif index == 6:
            cells, chosen, reason = [""] * 5, [None] * 5, "no votes"
        elif index == 7:
            text = f"\t{text}\t"
        elif index == 8:
            name, wav, reason = "../../secret", False, "leaves the corpus folder"
        elif index == 9:
            name, wav, reason = "", False, "no value in column `wav_id`"
        elif index == 10:
            short, reason = True, "columns where the header has"
        elif index == 11:
            cells, strengths = [f" {cell}\t" for cell in cells], [f"{s}.0" for s in strengths]
        elif index == 12:
            text = ""
        row = [name, text, "neutral"]
        for cell, strength in zip(cells, strengths, strict=True):
            row += [cell, strength]
        row += [str(age), gender]
        self.rows.append(row[:-3] if short else row)
        path = self.folder / f"{name}.wav"
        if wav and not path.exists():
            write_wav(path, 1000 * self.order + index)
        if reason:
            truth.rejected.append((source, reason))
            return
        used.append(name)
        truth.notes += [(source, kind) for kind in kinds]
        votes = [0] * len(CLASSES)
        for label, strength in zip(chosen, strengths, strict=True):
            if label:
                votes[CLASSES.index(label)] += 1 + int(float(strength or 0))
        speaker = f"{gender[0].upper()}-{age}"
        truth.utterances.append(
            Utterance(
                utterance_id=name,
                audio_path=str(path),
                session=speaker,
                dialogue=name,
                turn=0,
                speaker=speaker,
                gender=gender[0].upper(),
                text_raw=text.strip(),
                text=text.strip(),
                encoding="cp949",
                votes=tuple(votes),
                ratings=tuple(chosen),
                age=float(age),
            )
        )


def make_scripted(root: Path, speakers: int = 12, scripts: int = 14, seed: int = 0) -> Truth:
    """감정분류용 데이터셋: the same scripts in every speaker's folder."""
    truth = Truth(root)
    rng = random.Random(seed)
    root.mkdir(parents=True)
    spellings = ("neutral", "happiness", "surprise", "angry", "sadness", "disgust", "fear")
    texts = {number: sentence(rng) for number in range(1, scripts + 1)}
    labels = {number: (number - 1) % len(CLASSES) for number in texts}
    rows = [["number", "script", "emotion", ""]]
    for number, text in texts.items():
        rows.append([str(number), text, spellings[labels[number]], ""])
    rows += [
        [str(scripts + 1), sentence(rng), "boredom", ""],
        ["1", "다른 문장", "sad", ""],
        ["x", "문장", "sad", ""],
    ]
    truth.rejected += [
        (f"스크립트.csv:{scripts + 3}", "duplicate number"),
        (f"스크립트.csv:{scripts + 4}", "is not a number"),
    ]
    (root / "스크립트.csv").write_bytes(_csv(rows, "cp949"))
    for speaker in range(speakers):
        group = f"{speaker // 10 * 10}~{speaker // 10 * 10 + 9}_감정분류_데이터셋"
        folder = root / group / f"{speaker:03d}"
        folder.mkdir(parents=True)
        (folder / f"{speaker:03d}-001.jpg").write_bytes(b"\xff\xd8")
        for number, text in texts.items():
            name = f"{speaker:03d}-{number:03d}"
            write_wav(folder / f"{name}.wav", speaker * 100 + number)
            truth.utterances.append(
                Utterance(
                    utterance_id=f"{group}/{speaker:03d}/{name}",
                    audio_path=str(folder / f"{name}.wav"),
                    session=f"{speaker:03d}",
                    dialogue=f"{speaker:03d}-{number:03d}",
                    turn=0,
                    speaker=f"{speaker:03d}",
                    text_raw=text,
                    text=text,
                    encoding="cp949",
                    label=CLASSES[labels[number]],
                    style="scripted",
                )
            )
    first = f"0~9_감정분류_데이터셋/000/000-{scripts + 1:03d}.wav"
    unknown = "0~9_감정분류_데이터셋/000/000-999.wav"
    unnumbered = "0~9_감정분류_데이터셋/000/room.wav"
    for index, name in enumerate((first, unknown, unnumbered)):
        write_wav(root / name, 9000 + index)
    outside = root.parent / "elsewhere"
    outside.mkdir()
    write_wav(outside / "000-001.wav", 9100)
    (root / "linked").symlink_to(outside)
    link = "0~9_감정분류_데이터셋/001/001-500.wav"
    (root / link).symlink_to(outside / "000-001.wav")
    truth.rejected += [
        (first, "label `boredom` is none of the 7"),
        (unknown, "script 999 is not in the table"),
        (unnumbered, "no script number"),
        ("linked", "links are not followed"),
        (link, "is a link that leaves the corpus folder"),
    ]
    return truth


def make_wellness(
    root: Path, number: int = 30, label_map: Mapping[str, str] | None = None, seed: int = 0
) -> Truth:
    """감성대화 말뭉치 with its six classes: three are expected to be kept, and those mapped."""
    truth = Truth(root)
    rng = random.Random(seed)
    folder = root / "emotiondialogue"
    folder.mkdir(parents=True)
    classes = {"기쁨": "happy", "분노": "angry", "슬픔": "sad", **(label_map or {})}
    rows = [["파일명", "감정_대분류", "사람문장1"]]
    kinds = ("기쁨", "분노", "슬픔", "불안", "당황", "상처")
    for index in range(number):
        name, kind = f"{'FM'[index % 2]}_{index // 2 + 1:06d}", kinds[index % 6]
        text = sentence(rng)
        source = f"emotiondialogue.csv:{index + 2}"
        reason = "" if kind in classes else f"label `{kind}` is none of the 7"
        if index == 6:
            reason = "no wav file"
        elif index == 7:
            reason = "is not a file name of this corpus"
        elif index == 12:
            reason = "duplicate id"
        cell = {7: "../F_000001", 12: "F_000001"}.get(index, name)
        rows.append([f"{cell}.wav" if index % 3 else cell, kind, text])
        if index not in (6, 7, 12):
            write_wav(folder / f"{name}.wav", index)
        if reason:
            truth.rejected.append((source, reason))
            continue
        truth.utterances.append(
            Utterance(
                utterance_id=name,
                audio_path=str(folder / f"{name}.wav"),
                session=name[0],
                dialogue=name,
                turn=0,
                speaker=name[0],
                gender=name[0],
                text_raw=text,
                text=text,
                encoding="utf-8-sig",
                label=classes[kind],
                style="scripted",
            )
        )
    write_wav(folder / "M_009999.wav", 8000)
    truth.rejected.append(("emotiondialogue/M_009999.wav", "no table row names this recording"))
    (root / "emotiondialogue.csv").write_bytes(_csv(rows, "utf-8-sig"))
    return truth
