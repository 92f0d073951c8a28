"""A driver process for the search tests: `search_driver.py ADDRESS FOLDER ACTION OBJECTIVE`.

ACTION is `search` or `join`; OBJECTIVE is the name of a function of `search_stubs`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray

from helpers import search_stubs
from helpers.search_case import search_again
from multistill.search.study import join
from multistill.tracking.logger import NullLogger


class Loud(NullLogger):
    def info(self, message: str) -> None:
        print(message, flush=True)

    def child(self, name: str, key: str, kind: str) -> Loud:
        print("child", key, flush=True)
        return self


def main() -> int:
    address, folder, action = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    objective = getattr(search_stubs, sys.argv[4])
    ray.init(address=address, log_to_driver=False, logging_level="error")
    print("connected", flush=True)
    try:
        if action == "join":
            print("joined", join(folder, Loud(), objective=objective), flush=True)
        else:
            search_again(folder, objective, Loud())
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
