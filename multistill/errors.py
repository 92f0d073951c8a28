"""The errors a user can act on. Each message is one sentence: what, where, what to do."""


class MultistillError(Exception):
    """Work failed for a reason the user can mend. The command line exits with 1."""

    exit_code = 1


class UsageError(MultistillError):
    """Wrong use or a wrong job file. The command line exits with 2."""

    exit_code = 2


class JobFileError(UsageError):
    """Every problem of one job file at once.

    Args:
        source: the file's name as the user gave it.
        problems: `(line or None, sentence)` pairs in the file's order.
    """

    def __init__(self, source: str, problems: list[tuple[int | None, str]]) -> None:
        self.source = source
        self.problems = problems
        lines = [
            f"{source}:{line}: {text}" if line else f"{source}: {text}" for line, text in problems
        ]
        super().__init__("\n".join(lines))
