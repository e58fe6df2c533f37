"""Teacher, student alone and distilled student side by side: a GIF of the split, pictures of any folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mmkd.compare.figures import class_colors
from mmkd.compare.images import SCORE, Boxes, Image
from mmkd.compare.processes import call
from mmkd.data import listed_images, read_predictions
from mmkd.pictures import FRAMES, Box, draw_side_by_side, spread, write_gif

SHOWN, LOG = 8, "predict.log"


def draw_split(images: Sequence[Image], classes: Sequence[str], path: Path) -> None:
    """Write a GIF of some images of the evaluated split, at even distances.

    Args:
        images: at least one.
        classes: their names.
        path: the GIF to write.
    """
    colors = class_colors(len(classes))
    with TemporaryDirectory() as folder:
        pictures = []
        for number, image in enumerate(spread(images, SHOWN)):
            panels = {"ground truth": _boxes(image.truth)}
            panels |= {name: _boxes(found) for name, found in image.found.items()}
            pictures.append(Path(folder, f"{number}.png"))
            draw_side_by_side(image.path, panels, classes, colors, pictures[-1])
        write_gif(pictures, path, seconds=2.0)


def draw_folder(images: str, members: Mapping[str, tuple[Path, str]], folder: Path) -> None:
    """Let detectors predict images without labels, and draw what they find side by side.

    Args:
        images: a folder, list or COCO file; at most `FRAMES` of them, at even distances, are taken.
        members: title → evaluation config and checkpoint.
        folder: where to write the pictures and ``all.gif``.

    Raises:
        UserError: there are no images, or one cannot be read.
        ToolError: a detector failed.
    """
    chosen = [os.path.abspath(path) for path in spread(list(listed_images(images, what="--images")), FRAMES)]
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    with TemporaryDirectory() as place:
        listed = Path(place, "images.txt")
        listed.write_text("\n".join(chosen), encoding="utf-8")
        for number, (name, (config, checkpoint)) in enumerate(members.items()):
            out = Path(place, f"{number}.json")
            arguments = [str(config), checkpoint, "--data", str(listed), "--out", str(out)]
            call("predict", [*arguments, "--min-score", str(SCORE)], folder / LOG)
            found[name] = read_predictions(out)
    classes = next(iter(found.values())).classes
    pictures = []
    for number, path in enumerate(chosen):
        panels: dict[str, list[Box]] = {}
        for name, predictions in found.items():
            index = predictions.find(path)
            said = None if index is None else predictions.of(index)
            panels[name] = (
                []
                if said is None
                else [
                    (box, classes.index(predictions.classes[label]), True)
                    for box, label in zip(said.boxes_M4.tolist(), said.labels_M.tolist())
                    if predictions.classes[label] in classes
                ]
            )
        pictures.append(folder / f"{number:03d}_{Path(path).stem}.png")
        draw_side_by_side(path, panels, classes, class_colors(len(classes)), pictures[-1])
    write_gif(pictures, folder / "all.gif", seconds=2.0)


def _boxes(boxes: Boxes) -> list[Box]:
    return list(zip(boxes.corners.tolist(), boxes.labels.tolist(), boxes.right.tolist()))
