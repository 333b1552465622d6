"""The one exception for what a user can cause."""


class UserError(ValueError):
    """A mistake that the user can mend: shown as one line, without a traceback, with exit code 2.

    The message names where, what was expected, what came, and what to do.
    """


class Stopped(KeyboardInterrupt):
    """A second Ctrl-C, or one where no iteration can be waited for: the message says what is left of the run."""


class NotFinite(UserError):
    """Numbers were not finite for too long: another seed may have better luck."""


class InUse(UserError):
    """Somebody else works there now."""


class OutOfMemory(UserError):
    """The device's memory is full. `whole` says whether the training is as it was before the iteration."""

    def __init__(self, message: str, *, whole: bool) -> None:
        super().__init__(message)
        self.whole = whole
