from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from mmkd.compare.images import Boxes, Image
from mmkd.compare.side_by_side import LOG, SHOWN, draw_folder, draw_split
from mmkd.errors import UserError

IMAGES = sorted(Path("data/bccd/images/val").glob("*.jpg"))
TEACHER = Path("configs/bccd/teacher.py"), "data/bccd/teacher_atss_r18_narrow.pth"


def boxes(count: int) -> Boxes:
    corners = np.tile(np.array([[20, 20, 200, 200]], np.float32), (count, 1))
    return Boxes(corners, np.zeros(count, np.int64), np.ones(count, bool))


def test_some_images_of_a_split(tmp_path: Path) -> None:
    images = [Image(str(path), boxes(1), {"teacher": boxes(1), "kd": boxes(0)}, {}) for path in IMAGES[:2]]
    draw_split(images, ["cell"], tmp_path / "side_by_side.gif")
    with Picture.open(tmp_path / "side_by_side.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (min(2, SHOWN), 2000)  # type: ignore[attr-defined]
        assert gif.width > 2 * gif.height, "three in a row"


@pytest.mark.slow
def test_a_folder_without_labels(tmp_path: Path) -> None:
    (tmp_path / "images/below").mkdir(parents=True)
    for number, path in enumerate(IMAGES[:2]):
        shutil.copy(path, tmp_path / "images" / ("below" if number else "") / path.name)
    out = tmp_path / "out"
    draw_folder(str(tmp_path / "images"), {"teacher": TEACHER}, out)
    drawn = sorted(out.glob("*.png"))
    assert {path.name for path in out.iterdir()} == {LOG, "all.gif", *(path.name for path in drawn)}
    assert {path.name[4:-4] for path in drawn} == {path.stem for path in IMAGES[:2]}
    pixels = np.asarray(Picture.open(drawn[0]).convert("RGB"))[:-60]  # without the legend
    red_cells = (pixels == (0xD5, 0x5E, 0x00)).all(-1)
    assert red_cells.sum() > 500


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`--images` contains no images"):
        draw_folder(str(tmp_path), {"teacher": TEACHER}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
