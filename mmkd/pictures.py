"""Draws boxes: on one image, side by side, and as an animated GIF."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import mmcv
from matplotlib.figure import Figure  # not pyplot, which selects a backend for the whole process
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from mmkd.durable import write_file

FRAMES = 60
SIDE = 960

Box = tuple[Sequence[float], int, bool]


def add_boxes(axes: Any, boxes: Iterable[Box], colors: Sequence[Any]) -> None:
    """Draw boxes over an image: correct ones solid, wrong ones dashed.

    Args:
        axes: matplotlib axes that show the image.
        boxes: corners x1, y1, x2, y2 in pixels of the image, class index, and whether the box is correct.
        colors: one for each class; they repeat.
    """
    for (x1, y1, x2, y2), label, right in boxes:
        place, size = (float(x1), float(y1)), (float(x2 - x1), float(y2 - y1))
        style = "-" if right else (0, (3, 2))
        # A pale edge underneath keeps a box visible on dark and on light.
        for color, line in (("white", 4.2), (colors[label % len(colors)], 2.4)):
            axes.add_patch(
                Rectangle(place, *size, fill=False, edgecolor=color, linewidth=line, linestyle=style)
            )


def draw_side_by_side(
    image: str, panels: Mapping[str, Sequence[Box]], names: Sequence[str], colors: Sequence[Any], path: Path
) -> None:
    """Draw an image once for each detector, with its boxes, a title and a legend of the classes.

    Args:
        image: the image file.
        panels: title → boxes, see `add_boxes`.
        names: class names.
        colors: one for each class; they repeat.
        path: the picture file to write.
    """
    pixels = mmcv.imread(image, channel_order="rgb")
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    height = 4.5 * pixels.shape[0] / pixels.shape[1]
    size = (4.5 * columns, (height + 0.35) * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.axis("off")
    for panel, (title, boxes) in zip(axes.flat, panels.items()):
        panel.imshow(pixels)
        panel.set_title(f"{title} ({len(boxes)})")
        add_boxes(panel, boxes, colors)
    shown = sorted({label for boxes in panels.values() for _, label, _ in boxes})[:12]
    handles = [Patch(color=colors[label % len(colors)], label=names[label]) for label in shown]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(shown), 2 * columns))
    figure.savefig(path, dpi=120)


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` items, evenly spaced.

    Example:
        >>> spread(range(10), 4)
        [0, 2, 5, 7]
    """
    count = min(len(items), most)
    return [items[index * len(items) // count] for index in range(count)]


def write_gif(pictures: Sequence[Path], path: Path, seconds: float = 1.0) -> None:
    """Write pictures as an animated GIF.

    Args:
        pictures: picture files, at least one; the GIF shows at most `FRAMES` of them, evenly spaced.
        path: the GIF to write. Sides longer than `SIDE` pixels are reduced; smaller pictures get a white
            margin.
        seconds: time for each picture.
    """
    chosen = spread(pictures, FRAMES)
    sizes = [_fitted(*Image.open(picture).size) for picture in chosen]
    size = max(width for width, _ in sizes), max(height for _, height in sizes)

    def frame(picture: Path, fitted: tuple[int, int]) -> Image.Image:
        canvas = Image.new("RGB", size, "white")
        canvas.paste(
            Image.open(picture).convert("RGB").resize(fitted),
            ((size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2),
        )
        return canvas.quantize(method=Image.Quantize.FASTOCTREE)

    frames = map(frame, chosen, sizes)
    buffer = BytesIO()
    next(frames).save(
        buffer, "GIF", save_all=True, append_images=frames, duration=round(1000 * seconds), loop=0
    )
    write_file(path, buffer.getvalue())


def _fitted(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
