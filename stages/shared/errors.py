"""The one exception whose message goes to the user without a traceback."""


class UserError(Exception):
    """A mistake that the user can mend: the message says what was wrong, where, and what to do."""
