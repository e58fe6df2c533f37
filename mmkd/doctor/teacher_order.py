"""Check that the teacher's classes are in the assumed order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mmkd.doctor.agreement import Agreement
from mmkd.doctor.findings import Finding
from mmkd.doctor.trial import Trial


def examine_order(trial: Trial) -> Iterator[Finding]:
    """Check whether the teacher's classes are in another order than assumed."""
    teacher = trial.teacher
    seen = trial.ask(trial.many)
    yield order_found(seen, len(trial.many), trial.classes, teacher.names, teacher.class_map)


def order_found(
    seen: Agreement,
    images: int,
    classes: Sequence[str],
    names: Sequence[str] | None,
    class_map: Mapping[str, str],
    where: str = "its checkpoint",
) -> Finding:
    """The finding on the order of the teacher's classes.

    Args:
        seen: the measurement.
        images: the number of images measured.
        classes: the data set's classes.
        names: the teacher's class names, if known.
        class_map: from the data set's class names to the teacher's.
        where: the source of the teacher's names.
    """
    what = "teacher: class order"
    if not seen.order:
        return Finding(
            "ok" if seen.matched else "warning",
            what,
            f"{seen.right:.0%} of {seen.matched} detected objects have the right class ({images} images)"
            if seen.matched
            else f"it detects no objects in {images} images",
            "" if seen.matched else "see the errors of this teacher",
        )
    said = ", ".join(f"{classes[is_]} is predicted as {classes[a]}" for a, is_ in sorted(seen.order.items()))
    if names is None:
        # Place i in the teacher's order gets the data set's class that its label i really means.
        order = tuple(classes[seen.order.get(place, place)] for place in range(len(classes)))
        remedy = (
            f"write its class order into the checkpoint, meta['dataset_meta']={{'classes': {order}}}: "
            "then classes are matched by name"
        )
    else:
        mapping = {classes[is_]: class_map.get(classes[a], classes[a]) for a, is_ in seen.order.items()}
        remedy = (
            f"the class names in {where} or in the data set are wrong: correct them, or set "
            f"teacher.class_map={mapping}"
        )
    return Finding.error(
        what,
        f"it was trained with another class order: {said}; its AP is {seen.ap:.3f} as "
        f"configured and {seen.ap_best:.3f} with the classes reordered ({seen.matched} objects)",
        remedy,
    )
