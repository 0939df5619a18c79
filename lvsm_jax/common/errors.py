"""Errors that are printed in one line, because the user can mend what they name."""


class UserError(ValueError):
    """What a user gave is wrong. The message says what, where, and what is expected.

    Every check of this package raises it, or a class of it. `common.command_line.program` prints
    it in one line; any other exception is a bug, and keeps its traceback.
    """


class MissingWeightsError(UserError, FileNotFoundError):
    """A file of weights that a loss or a metric needs is not there."""
