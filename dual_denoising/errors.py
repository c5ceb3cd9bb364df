"""What a user can mend, in one line that names the file, the field, the value and the mend."""


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
