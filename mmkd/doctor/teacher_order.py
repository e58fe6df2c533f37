"""Whether the teacher's classes are in the order that they are taken to be in."""

from __future__ import annotations

from collections.abc import Iterator

from mmkd.doctor.findings import Finding
from mmkd.doctor.trial import Trial


def examine_order(trial: Trial) -> Iterator[Finding]:
    """Whether its classes are in another order than it is thought."""
    what, teacher, classes = "teacher: class order", trial.teacher, trial.classes
    seen = trial.ask(trial.many)
    if not seen.order:
        yield Finding(
            "ok" if seen.matched else "warning",
            what,
            f"{seen.right:.0%} of {seen.matched} objects that it finds get their right class "
            f"({len(trial.many)} images)"
            if seen.matched
            else f"it finds no object in {len(trial.many)} images",
            "" if seen.matched else "see the errors of this teacher",
        )
        return
    said = ", ".join(f"{classes[is_]} is called {classes[a]}" for a, is_ in sorted(seen.order.items()))
    if teacher.names is None:
        # A place in the teacher's order is a class of the data set's, said by mistake.
        order = tuple(classes[seen.order.get(place, place)] for place in range(len(classes)))
        remedy = (
            f"write its order into the checkpoint, meta['dataset_meta']={{'classes': {order}}}: "
            "then classes are found by name"
        )
    else:
        mapping = {
            classes[is_]: teacher.class_map.get(classes[a], classes[a]) for a, is_ in seen.order.items()
        }
        remedy = (
            "the names in its checkpoint, or those of the data set, are wrong: correct them, or set "
            f"teacher.class_map={mapping}"
        )
    yield Finding(
        "error",
        what,
        f"it was trained on another class order: {said}; with them exchanged its AP is {seen.ap_best:.3f}, "
        f"otherwise {seen.ap:.3f} ({seen.matched} objects)",
        remedy,
    )
