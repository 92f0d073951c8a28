"""Altered artifacts: real files are mutated, and a reader meets them in a process of its own.

The process may allocate little and must end in time; it is told apart from a crash, from code
that ran, and from a change outside its folder.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multistill.errors import MultistillError

MEMORY = 3 * 2**30
"""Bytes of address space that a reader may add to those of the process it starts in."""
SECONDS = 30
"""CPU seconds of one case."""

Reader = Callable[[Path], object]
"""Reads the artifact in a folder."""
Fix = Callable[[Path], None]
"""Updates the checksums after a mutation, as an attacker would."""

FORBIDDEN = {
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "socket.connect",
    "marshal.load",
    "code.__new__",
    "ctypes.dlopen",
}
"""Events of `sys.audit` that no reader of a workspace causes."""
_FOR_WRITING = os.O_WRONLY | os.O_RDWR
_WRITES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}


class _Planted:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("echo pwned > /tmp/multistill-pwned",)


VALUES: list[Any] = [
    None,
    -1,
    0,
    2**31,
    10**12,
    1e308,
    "",
    "../../../../etc/passwd",
    "/etc/passwd",
    "os:system",
    "\0",
    [],
    {},
    [[]],
    ["x"] * 3,
    {"x": 1},
    True,
]


def mutate(path: Path, rng: random.Random) -> str:
    """Change one file at random; returns what was done."""
    choices: list[Callable[[Path, random.Random], str]] = [_bytes]
    if path.suffix == ".json":
        choices = [_json, _json, _json, _bytes, _planted]
    elif path.suffix == ".parquet":
        choices = [_parquet, _bytes, _bytes, _planted]
    elif path.suffix == ".safetensors":
        choices = [_safetensors, _bytes, _planted]
    elif path.suffix in {".log", ".jsonl"}:
        choices = [_lines, _lines, _lines, _bytes, _planted]
    else:
        choices = [_bytes, _bytes, _planted]
    try:
        return rng.choice(choices)(path, rng)
    except ValueError:  # the original is no JSON or Parquet, whatever its name says
        return _bytes(path, rng)


def _bytes(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes() or b"\n")
    at = rng.randrange(len(data) or 1)
    kind = rng.choice(["flip", "flip", "cut", "zeros", "insert", "head", "tail"])
    if kind == "flip":
        for _ in range(rng.choice([1, 4, 64])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "zeros":
        data[at : at + 64] = bytes(64)
    elif kind == "insert":
        data[at:at] = rng.randbytes(rng.choice([1, 16, 4096]))
    elif kind == "head":
        data[: rng.choice([4, 8, 16])] = rng.randbytes(8)
    else:
        end = len(data) - rng.randrange(1, 256)
        data[end : end + 8] = rng.randbytes(8)
    path.write_bytes(bytes(data))
    return f"{kind} of {path.name} at {at}"


def _planted(path: Path, rng: random.Random) -> str:
    path.write_bytes(pickle.dumps(_Planted()))
    return f"a pickle as {path.name}"


def _changed(value: Any, rng: random.Random) -> Any:
    """The JSON value with one entry replaced or removed, somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {name: entry for name, entry in value.items() if name != key}
        return {**value, key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    return rng.choice(VALUES)


def _json(path: Path, rng: random.Random) -> str:
    if rng.random() < 0.05:
        path.write_text("[" * 200_000)
        return f"{path.name} nested deeply"
    changed = _changed(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(changed))
    return f"an entry of {path.name}: {json.dumps(changed)[:20_000]}"


def _lines(path: Path, rng: random.Random) -> str:
    lines = path.read_text(errors="replace").splitlines()
    at = rng.randrange(len(lines))
    try:
        lines[at] = json.dumps(_changed(json.loads(lines[at]), rng))
    except ValueError:
        lines[at] = ""
    path.write_text("\n".join(lines) + "\n")
    return f"line {at} of {path.name}: {lines[at][:2000]}"


def _parquet(path: Path, rng: random.Random) -> str:
    table = pq.read_table(path)
    name = rng.choice(table.column_names)
    at = table.column_names.index(name)
    kind = rng.choice(["drop", "null", "text", "number", "list", "huge", "empty", "bare", "path"])
    rows = len(table)
    if kind == "drop":
        table = table.drop_columns([name])
    elif kind == "empty":
        table = table.slice(0, 0)
    elif kind == "bare":
        table = table.replace_schema_metadata(None)
    else:
        values = {
            "null": pa.nulls(rows),
            "text": pa.array(["os:system"] * rows),
            "number": pa.array([-1] * rows),
            "list": pa.array([[0.5, -1.0]] * rows),
            "huge": pa.array([2**62] * rows),
            "path": pa.array(["/etc/passwd"] * rows),
        }
        table = table.set_column(at, name, values[kind])
    pq.write_table(table, path)
    return f"{kind} {name} of {path.name}"


def _safetensors(path: Path, rng: random.Random) -> str:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = _changed(json.loads(data[8 : 8 + size]), rng)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return f"header of {path.name}: {text[:2000]!r}"


def failures(
    original: Path,
    read: Reader,
    work: Path,
    *,
    cases: int,
    seed: int,
    fix: Fix = lambda folder: None,
) -> Iterator[str]:
    """Yield what went wrong in which case: neither an answer nor a `MultistillError`.

    Args:
        original: folder of the artifact.
        work: an empty folder.
        cases: mutations to try.
    """
    read(_copy(original, work / "warm"))  # the unchanged one is read, and modules are imported
    first = 0
    while first < cases:
        log = work / "log"
        log.write_text("")
        child = os.fork()
        if child == 0:
            _run(original, read, work, log, range(first, cases), seed, fix)
        _, status = os.waitpid(child, 0)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        yield from (line["problem"] for line in lines if "problem" in line)
        begun = [line for line in lines if "begun" in line]
        first = begun[-1]["begun"] + 1 if begun else cases
        if status != 0:
            what = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "an exit"
            yield f"{what} in: {begun[-1]['what'] if begun else 'the start'}"


def _copy(original: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(original, target, symlinks=True)
    return target


def _run(
    original: Path, read: Reader, work: Path, log: Path, cases: range, seed: int, fix: Fix
) -> None:
    code = 1
    what = "the start"
    try:
        with log.open("a", buffering=1) as stream:
            _limit()
            sys.stderr = io.StringIO()
            guarded = _Guard(work)
            for case in cases:
                rng = random.Random(f"{seed}-{case}")
                folder = _copy(original, work / f"case{os.getpid()}")
                file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
                what = f"case {case}: {mutate(file, rng)}"
                fix(folder)
                stream.write(json.dumps({"begun": case, "what": what}) + "\n")
                signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
                problem = guarded.problem(read, folder)
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                if problem:
                    stream.write(json.dumps({"problem": f"{problem} in {what}"}) + "\n")
        code = 0
    except BaseException as error:
        os.write(2, f"the harness failed after {what[:200]}: {error!r}\n".encode())
    finally:
        os._exit(code)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _Guard:
    """Watches what a reader does besides reading."""

    def __init__(self, work: Path) -> None:
        self._work = str(work)
        self._active = False
        self._seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event in FORBIDDEN:
            self._seen.append(f"{event} {arguments!r}"[:300])
        path = arguments[0] if arguments else None
        if event in _WRITES or (event == "open" and (arguments[2] or 0) & _FOR_WRITING):
            # An entry of an open folder is told by `shutil.rmtree`, with the folder's path.
            in_open_folder = event != "open" and arguments[-1] not in (-1, None)
            if isinstance(path, str | os.PathLike) and not in_open_folder:
                real = os.path.realpath(os.fspath(path))
                if not real.startswith((self._work, "/dev/null")):
                    self._seen.append(f"{event} {real}")

    def problem(self, read: Reader, folder: Path) -> str:
        self._seen.clear()
        self._active = True
        try:
            read(folder)
        except MultistillError as error:
            text = str(error)
            if not text or "\n" in text.strip() or len(text) > 3000:
                return f"no sentence: {text[:300]}"
        except BaseException as error:  # all that is no sentence
            import traceback

            where = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in where if "multistill/" in frame.filename] or where
            return (
                f"{type(error).__name__}: {str(error)[:200]} at {own[-1].filename}:{own[-1].lineno}"
            )
        finally:
            self._active = False
        return "; ".join(self._seen)
