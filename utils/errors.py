"""The one exception for what a user can cause."""


class UserError(ValueError):
    """A mistake that the user can mend: shown as one line, without a traceback, with exit code 2.

    The message names where, what was expected, what came, and what to do.
    """
