"""The one exception for input that a user can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, told in one sentence: what is wrong, with which file or argument, and the way out.

    The command line prints the sentence and exits with code 2; nothing already written is lost.
    """
