"""The error that a user can mend."""


class UserError(ValueError):
    """A mistake in a config, checkpoint or data set, with its remedy.

    The command-line tools print the message alone, without a traceback.
    """


def user_error(problem: str, *, expected: str, found: str, remedy: str) -> UserError:
    """Compose a `UserError` in the project's one form.

    Args:
        problem: one sentence that says what is wrong.
        expected: what would have been right.
        found: what was there instead.
        remedy: what the user can do about it.

    Returns:
        The error, to be raised by the caller.
    """
    return UserError(f"{problem}\n  expected: {expected}\n  found:    {found}\n  remedy:   {remedy}")
