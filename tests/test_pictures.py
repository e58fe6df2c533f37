from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmkd.errors import UserError
from mmkd.pictures import FRAMES, SIDE, draw_side_by_side, write_gif

IMAGE = str(sorted(Path("data/bccd/images/val").glob("*.jpg"))[0])


def plain(folder: Path, name: str, size: tuple[int, int], color: str) -> Path:
    Image.new("RGB", size, color).save(folder / name)
    return folder / name


def test_gif_of_pictures_of_several_sizes(tmp_path: Path) -> None:
    pictures = [
        plain(tmp_path, "a.png", (2 * SIDE, SIDE), "red"),
        plain(tmp_path, "b.png", (40, 60), "blue"),
    ]
    write_gif(pictures, tmp_path / "below/all.gif", seconds=0.5)
    with Image.open(tmp_path / "below/all.gif") as gif:
        assert (gif.size, gif.n_frames, gif.info["duration"]) == ((SIDE, SIDE // 2), 2, 500)
        assert gif.info["loop"] == 0, "for ever"
        middle = SIDE // 2, SIDE // 4
        assert gif.convert("RGB").getpixel(middle) == (255, 0, 0)
        gif.seek(1)
        assert gif.convert("RGB").getpixel(middle) == (0, 0, 255)
        assert gif.convert("RGB").getpixel((5, 5)) == (255, 255, 255), "the margin"


def test_gif_shows_many_pictures_at_even_distances(tmp_path: Path) -> None:
    shades = [plain(tmp_path, f"{i}.png", (4, 4), f"rgb({i}, 0, 0)") for i in range(2 * FRAMES)]
    write_gif(shades, tmp_path / "all.gif")
    with Image.open(tmp_path / "all.gif") as gif:
        assert gif.n_frames == FRAMES
        gif.seek(FRAMES - 1)
        assert gif.convert("RGB").getpixel((0, 0)) == (2 * FRAMES - 2, 0, 0)


def test_gif_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write"):
        write_gif([plain(tmp_path, "a.png", (4, 4), "red")], tmp_path / "file/all.gif")


def test_side_by_side(tmp_path: Path) -> None:
    box = [20.0, 20.0, 200.0, 200.0]
    panels = {"ground truth": [(box, 0, True)], "teacher": [(box, 0, False)], "student": [], "distilled": []}
    draw_side_by_side(IMAGE, panels, ["cell"], ["#FF00FF"], tmp_path / "four.png")
    drawn = (np.asarray(Image.open(tmp_path / "four.png").convert("RGB")) == (255, 0, 255)).all(-1)
    middle, half = drawn.shape[0] // 2, drawn.shape[1] // 2
    right, wrong = drawn[:middle, :half].sum(), drawn[:middle, half:].sum()
    assert 0 < wrong < 0.9 * right, "dashed"
    assert not drawn[middle:-60].any(), "nothing is found there, and the legend is below"
