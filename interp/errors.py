"""The one exception for what a caller got wrong."""


class InputError(ValueError):
    """Bad input: the message names what came, what was expected and what to do.

    The command line prints it as one line and ends with status 2; a library caller can catch it as `ValueError`.
    """
