"""A driver of its own for the search tests: `search_driver.py ADDRESS FOLDER ACTION`."""

from __future__ import annotations

import sys
from pathlib import Path

import ray

from multistill.search.study import join, resume
from multistill.tracking.logger import NullLogger


class Loud(NullLogger):
    def info(self, message: str) -> None:
        print(message, flush=True)

    def child(self, name: str, key: str, kind: str) -> Loud:
        print("child", key, flush=True)
        return self


def main() -> int:
    address, folder, action = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level="error")
    print("connected", flush=True)
    try:
        if action == "join":
            print("joined", join(Path(folder), Loud()), flush=True)
        else:
            resume(Path(folder), Loud())
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
