"""The `multistill` command. Thin: each command reads its arguments and calls one function.

Nothing heavy is imported here; commands import what they need when they run, so that
`multistill --help` responds immediately. Progress goes to standard error, results to standard
output. Exit codes: 0 done, 1 failed, 2 wrong use or wrong job file.
"""

from multistill.cli.app import main

__all__ = ["main"]
