"""The one exception type that a person, not a programmer, is expected to read."""


class InputError(ValueError):
    """Input that cannot be used: a file, a column, a value or an option.

    The message is one line that names the file or argument, the field, what came, and what to do about it. The command
    line prints it without a traceback and exits with status 2.
    """
