"""The one exception that users are meant to see."""


class WinnowError(Exception):
    """A mistake in the input, or in the surroundings, that the user can put right.

    The message is a single line that names what is wrong, where, and what to do. A stage or flow
    prints it without a traceback and ends with exit status 2.
    """


class ProcessGoneError(WinnowError):
    """Another of the processes that train together ended too early; it says why itself."""
