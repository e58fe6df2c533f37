"""The error that a user can fix."""

from __future__ import annotations

import difflib
import inspect
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class UserError(ValueError):
    """A mistake in a config, checkpoint or data set, with its remedy.

    The command-line tools print only the message, without a traceback. Pickling and copying keep its fields.

    Args:
        what: one sentence that says what is wrong.
        expected: what would be right; given together with ``found`` and ``remedy``, or not at all.
        found: what was found instead.
        remedy: what the user can do about it.

    Attributes:
        what, expected, found, remedy: as given; the last three are ``None`` if there is only a sentence.

    Example:
        >>> print(UserError("The cup is empty.", expected="tea", found="nothing", remedy="fill it"))
        The cup is empty.
          expected: tea
          found:    nothing
          remedy:   fill it
    """

    def __init__(
        self, what: str, *, expected: str | None = None, found: str | None = None, remedy: str | None = None
    ) -> None:
        fields = [("expected", expected), ("found", found), ("remedy", remedy)]
        lines = [f"  {name + ':':<9} {text}" for name, text in fields if text is not None]
        super().__init__("\n".join([what, *lines]))
        self.what, self.expected, self.found, self.remedy = what, expected, found, remedy

    def at(self, place: str) -> UserError:
        """The same error, prefixed with its place, like ``teacher[1]``."""
        what = f"{place}: {self.what}"
        return type(self)(what, expected=self.expected, found=self.found, remedy=self.remedy)


@contextmanager
def naming(owner: object) -> Iterator[None]:
    """Turn a ValueError about an option into a `UserError` that names its owner.

    Args:
        owner: whose option it is, named by its class; or what to put before the option, like ``teacher.``.
    """
    try:
        yield
    except ValueError as error:
        prefix = owner if isinstance(owner, str) else f"{type(owner).__name__}: "
        raise UserError(f"{prefix}{error}") from None


user_error = UserError  # its name for plugins when it was a function


def check_options(what: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Raise `UserError` for a name that is not among the valid ones.

    Args:
        what: what the options belong to.
        given: the names in a config.
        valid: the valid names.
    """
    valid = sorted(valid)
    unknown = sorted(map(str, set(given) - set(valid)))
    if unknown:
        near = nearest(unknown[0], valid, cutoff=0.7)
        raise UserError(
            f"{what} has no option {', '.join(unknown)}.",
            expected=", ".join(valid),
            found=", ".join(unknown),
            remedy=f"did you mean {near}?" if near else "correct or remove it",
        )


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of several names, for "did you mean …?".

    Args:
        name: the name as written.
        names: the valid names.
        cutoff: the required similarity, from 0 (anything) to 1 (equal).

    Returns:
        ``None`` if no name is similar enough.
    """
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)), None)


def instead(name: str, names: Collection[str]) -> str:
    """The remedy for a wrong name: the most similar of the valid names, or all of them.

    Example:
        >>> instead("trian", ["train", "val"]), instead("x", ["train", "val"])
        ('did you mean train?', 'valid: train, val')
    """
    near = nearest(name, names)
    return f"did you mean {near}?" if near else f"valid: {', '.join(names)}"


def check_arguments(what: str, given: Iterable[str], function: Callable[..., Any]) -> None:
    """Raise `UserError` unless the names are arguments of a function or class, and none is missing.

    Args:
        what: what the options belong to.
        given: the names in a config.
        function: a function or class without ``**options``.
    """
    given, arguments = set(given), inspect.signature(function).parameters
    check_options(what, given, arguments)
    lacking = [name for name, one in arguments.items() if one.default is one.empty and name not in given]
    if lacking:
        raise UserError(
            f"{what} lacks {', '.join(lacking)}.",
            expected=", ".join(arguments),
            found=", ".join(sorted(given)) or "no option",
            remedy="add it",
        )


def place_of(error: BaseException) -> str:
    """The part of the config that caused an error in mmengine or mmdet, from its traceback.

    Args:
        error: an error with its traceback.

    Returns:
        What was being built, from the outside in, like ``while building KDSingleStageDetector → FPN``; or
        else the innermost function of theirs or mmkd's, like ``in ATSSHead.loss_by_feat``; and the line of
        code if the error has no text. Empty if there is neither.
    """
    building: list[str] = []
    function = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package not in ("mmengine", "mmdet", "mmcv", "mmkd"):
            continue
        found = frame.f_locals
        if frame.f_code.co_name == "build_from_cfg":
            building.append(type_of(found.get("cfg")))
        else:
            owner = type(found["self"]).__name__ if "self" in found else frame.f_globals["__name__"]
            function = f"{owner}.{frame.f_code.co_name}"
    places = [f"in {function}"] if function else []
    if building:
        places = [f"while building {' → '.join(building)}"]
    if not str(error).strip():
        places += [f"at: {frame.line}" for frame in traceback.extract_tb(error.__traceback__)[-1:]]
    return ", ".join(places)


def type_of(cfg: Any) -> str:
    """The name of a config's ``type`` in messages."""
    if not isinstance(cfg, Mapping):
        return repr(cfg)[:60]
    if "type" not in cfg:
        return f"a dict without type, of {', '.join(map(str, cfg))}"
    found = cfg["type"]
    return found.__name__ if isinstance(found, type) else str(found)
