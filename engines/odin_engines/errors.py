"""The one error that users see."""

from __future__ import annotations


class OdinError(Exception):
    """Something the user can mend: the message names the file, tensor or flag, and the remedy.

    Command lines print it without a stack trace; libraries let it pass.
    """
