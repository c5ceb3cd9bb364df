"""What a user can mend, in one line that names the file, the field, the value and the mend."""


class InputError(ValueError):
    """Bad input from outside; scripts print its one line and exit with ``status``."""

    status = 1
