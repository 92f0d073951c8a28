"""Errors that a user can act on. Each message is one sentence: what, where, what to do."""


class MultistillError(Exception):
    """An operation failed for a reason that the user can fix. The command line exits with 1."""

    exit_code = 1


class UsageError(MultistillError):
    """Invalid usage or an invalid job file. The command line exits with 2."""

    exit_code = 2


class JobFileError(UsageError):
    """All problems of one job file.

    Args:
        source: file name as given by the user.
        problems: `(line or None, message)` pairs in the order of the file.
    """

    def __init__(self, source: str, problems: list[tuple[int | None, str]]) -> None:
        self.source = source
        self.problems = problems
        lines = [
            f"{source}:{line}: {text}" if line else f"{source}: {text}" for line, text in problems
        ]
        super().__init__("\n".join(lines))
