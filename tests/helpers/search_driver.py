"""A separate driver process for the search tests: `search_driver.py ADDRESS FOLDER ACTION`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ray

from helpers.recording_logger import RecordingLogger
from multistill.search.study import join, resume


def print_event(logger: RecordingLogger, method: str, recorded: Any) -> None:
    if method == "info":
        print(recorded, flush=True)
    elif method == "child":
        print("child", recorded.key, flush=True)


def main() -> int:
    address, folder, action = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level="error")
    print("connected", flush=True)
    logger = RecordingLogger(on_event=print_event)
    try:
        if action == "join":
            print("joined", join(Path(folder), logger), flush=True)
        else:
            resume(Path(folder), logger)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
