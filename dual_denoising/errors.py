"""What a user can mend, in one line that names the file, the field, the value and the mend."""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input from outside; scripts print its one line and exit with ``status``."""

    status = 1


class MissingError(InputError):
    """Data that is not there."""


def brief(error: Exception) -> str:
    """The kind and the words of an error, in one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def input_error(error: BaseException | None) -> InputError | None:
    """The InputError that caused ``error``, through what wraps it (Hydra does), or None."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def one_line_errors(job: Callable, *args):
    """Runs a script's job; bad input ends it with one line instead of a traceback."""
    try:
        return job(*args)
    except Exception as error:
        print(f"error: {input_words(error)}", file=sys.stderr)
        sys.exit(input_error(error).status)


def input_words(error: Exception) -> str:
    """What bad input said, in one line; raises any other error again."""
    cause = input_error(error)
    if cause is None:
        raise error
    return str(cause).rpartition("InputError: ")[2].strip()  # a loader's worker adds its trace
