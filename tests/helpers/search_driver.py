"""A separate driver process: `search_driver.py ADDRESS FOLDER ACTION OBJECTIVE`.

ACTION is `search` or `join`; OBJECTIVE is the name of a function of `search_objectives`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ray

from helpers import search_objectives
from helpers.recording_logger import RecordingLogger
from helpers.search_case import search_again
from multistill.search.study import join


def print_event(logger: RecordingLogger, method: str, recorded: Any) -> None:
    if method == "info":
        print(recorded, flush=True)
    elif method == "child":
        print("child", recorded.key, flush=True)


def main() -> int:
    address, folder, action = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    objective = getattr(search_objectives, sys.argv[4])
    ray.init(address=address, log_to_driver=False, logging_level="error")
    print("connected", flush=True)
    logger = RecordingLogger(on_event=print_event)
    try:
        if action == "join":
            print("joined", join(folder, logger, objective=objective), flush=True)
        else:
            search_again(folder, objective, logger)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
