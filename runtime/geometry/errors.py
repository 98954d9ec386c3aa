"""The one exception a user is meant to read."""


class InputError(ValueError):
    """Bad input in one line: the argument, what came, what was expected and what to do about it."""
