"""The error that a user can mend."""

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a config, checkpoint or data set, with its remedy.

    The command-line tools print the message alone, without a traceback.
    """


def check_options(what: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Raise `UserError` for a name that is not among the valid ones.

    Args:
        what: what the names are options of.
        given: the names in a config.
        valid: the names that there are.
    """
    valid = sorted(valid)
    unknown = sorted(set(given) - set(valid))
    if unknown:
        raise user_error(
            f"{what} has no option {', '.join(unknown)}.",
            expected=", ".join(valid),
            found=", ".join(unknown),
            remedy="correct or remove it",
        )


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
