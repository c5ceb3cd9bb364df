"""Errors that a user can fix: one line that names the file or field, the value and the fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Bad input from outside. Scripts print its one line and exit with ``status``."""

    status = 1


class NoShapeError(InputError):
    """A file that can be read, but holds no shape: no points, or all of them equal."""


def brief(error: BaseException, limit: int = 200) -> str:
    """The kind and the words of an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:limit]


@contextmanager
def reading(path: str | Path, kind: str, fix: str, limit: int = 200) -> Iterator[None]:
    """Raises InputError for whatever fails while a file of some kind is read, and says the fix."""
    try:
        yield
    except InputError:
        raise
    except IsADirectoryError as error:
        raise InputError(f"{path}: a folder; {fix}") from error
    except MemoryError as error:
        raise InputError(f"{path}: too large for the memory; give a smaller one") from error
    except Exception as error:  # parsers of damaged files raise anything
        if not Path(str(path)).exists():
            raise InputError(f"{path}: missing; {fix}") from error
        raise InputError(f"{path}: not a valid {kind} ({brief(error, limit)}); {fix}") from error


def input_error(error: BaseException | None) -> InputError | None:
    """The InputError in an exception's chain of causes (Hydra wraps them), or None."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def one_line(error: BaseException) -> str:
    """The message of the InputError that caused ``error``. Any other error is raised again."""
    cause = input_error(error)
    if cause is None:
        raise error
    return str(cause).rpartition("InputError: ")[2].strip()  # a loader's worker adds its traceback


def fields_of(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All nested settings, each after its full name: 'optim', 'optim.lr', 'data.tests.0'."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield f"{prefix}{key}", value
        if isinstance(value, (dict, list)):
            yield from fields_of(value, f"{prefix}{key}.")


def check(field: str, value, good, fix: str) -> None:
    """Raises InputError for the value of a field unless it is ``good``."""
    if not good:
        raise InputError(f"{field} is {value!r}: {fix}")


def check_choice(field: str, value, choices) -> None:
    """Raises InputError for the value of a field unless it is one of the choices."""
    check(field, value, value in choices, f"choose one of {', '.join(map(str, choices))}")


def check_number(
    field: str, value, low: float = 0, whole: bool = True, above: bool = False, most: float = inf
):
    """Returns the value. Raises InputError unless it is a number from ``low`` to ``most``.

    whole: it must be a whole one; above: ``low`` itself is not enough.
    """
    good = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not good or not low <= value <= most or value == inf or (above and value == low):
        kind, start = "whole number" if whole else "number", "above" if above else "from"
        end = "" if most == inf else f" to {most}"
        raise InputError(f"{field} is {value}: give a {kind} {start} {low}{end}")
    return value
