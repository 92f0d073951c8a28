"""Errors that a user can act on. Each message is one sentence: what, where, what to do."""


class MultistillError(Exception):
    """An operation failed for a reason that the user can fix. The command line exits with 1."""

    exit_code = 1


class UsageError(MultistillError):
    """Invalid usage or an invalid job file. The command line exits with 2."""

    exit_code = 2


class MissingPackageError(UsageError):
    """A package of an extra is not installed here."""


def known_cause(error: BaseException) -> BaseException:
    """Our own error inside what Ray wrapped around it, else the error itself.

    Ray's wrapper may be an instance of our class too, with a remote traceback as its text:
    its `cause` takes precedence.
    """
    current: BaseException | None = error
    for _ in range(8):
        inner = getattr(current, "cause", None)
        if isinstance(inner, BaseException):
            current = inner
        elif current is None or isinstance(current, MultistillError):
            break
        else:
            current = current.__cause__
    return current if isinstance(current, MultistillError) else error


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
