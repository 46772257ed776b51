"""Where the command line speaks: results to standard output, one place for all of it."""

import sys


def say(text: str = "") -> None:
    """Write one line (or several) to standard output at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
