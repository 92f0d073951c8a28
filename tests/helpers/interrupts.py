"""Processes that Ctrl-C is sent to."""

from __future__ import annotations

import signal


def heed_interrupts() -> None:
    """`preexec_fn` of a process that is interrupted: a shell's background jobs ignore SIGINT, and
    the processes that they start inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
