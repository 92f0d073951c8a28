"""Coverage of the intervals and rate of false verdicts, on test sets from a known population.

    python benchmarks/intervals.py [--simulations 1000] [--jobs 2]

Sessions differ in difficulty, classes are as uneven as in conversation (30 % to 5 %), and trainings
of one model differ by their seed (standard deviation of macro F1 about 0.07). Printed are Markdown
tables: the share of 95 % intervals that hold the true value, and how often two kinds of model that
differ by seed alone get a verdict.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from joblib import Parallel, delayed

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.simulated_test_sets import coverage, verdicts
from rows import add_row

from multistill.metrics.classification import HARD

SESSIONS = (3, 4, 6, 10, 20, 40)
CLIPS = (30, 100, 500)


def count_verdicts(sessions: int, clips: int, seeds: int, simulations: int) -> Counter[str]:
    return Counter(verdicts(sessions, clips, seeds, simulations, seed=sessions * clips + seeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    simulations, run = arguments.simulations, Parallel(n_jobs=arguments.jobs)
    cases = [(sessions, clips) for sessions in SESSIONS for clips in CLIPS]
    covered = run(delayed(coverage)(*case, simulations, seed=sum(case)) for case in cases)
    print(f"Coverage of the 95 % interval, {simulations} test sets each (- : no interval)\n")
    print(f"| sessions x clips | {' | '.join(HARD)} | with interval (UAR) |")
    print("| --- |" + " --- |" * (len(HARD) + 1))
    for (sessions, clips), result in zip(cases, covered, strict=True):
        figures = {m: round(result[m][0], 4) for m in HARD if result[m][1]}
        case = {"simulations": simulations, "sessions": sessions, "clips": clips}
        add_row("intervals", {"what": "coverage", **case, **figures})
        shares = [f"{result[m][0]:.3f}" if result[m][1] else "-" for m in HARD]
        defined = result["uar"][1] / simulations
        print(f"| {sessions} x {clips} | {' | '.join(shares)} | {defined:.2f} |")
    cases_with_seeds = [(*case, seeds) for case in cases for seeds in (2, 3, 5)]
    counted = run(delayed(count_verdicts)(*case, simulations) for case in cases_with_seeds)
    print(f"\nVerdicts on models that differ by seed alone, {simulations} comparisons each\n")
    print("| sessions x clips | seeds | helped | did not help |")
    print("| --- | --- | --- | --- |")
    for (sessions, clips, seeds), verdict in zip(cases_with_seeds, counted, strict=True):
        helped, worse = (verdict[name] / simulations for name in ("helped", "did not help"))
        case = {"simulations": simulations, "sessions": sessions, "clips": clips, "seeds": seeds}
        figures = {"helped": helped, "did_not_help": worse}
        add_row("intervals", {"what": "verdicts", **case, **figures})
        print(f"| {sessions} x {clips} | {seeds} | {helped:.3f} | {worse:.3f} |")


if __name__ == "__main__":
    main()
