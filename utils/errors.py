"""The exceptions for what a user can cause."""

import signal


class UserError(ValueError):
    """A mistake that the user can fix: shown as one line, without a traceback, with exit code 2.

    The message names where, what was expected, what came, and what to do.
    """


class Stopped(KeyboardInterrupt):
    """A signal that ends the program where no iteration is waited for: what is left, and the `number` of it."""

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


class NotFinite(UserError):
    """Numbers were not finite for too long: another seed may have better luck."""


class Alone(UserError):
    """Another process of this run has ended, and it may know why."""


class InUse(UserError):
    """Somebody else works there now."""


class Occupied(UserError):
    """A run's folder holds what no run may take the place of unasked."""


class OutOfMemory(UserError):
    """The device's memory is full. `whole` says whether the training is as it was before the iteration."""

    def __init__(self, message: str, *, whole: bool) -> None:
        super().__init__(message)
        self.whole = whole
