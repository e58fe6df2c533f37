"""Predictions written piece by piece, and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmkd.data import PredictionsWriter, read_predictions
from mmkd.errors import UserError

CLASSES = ("cat", "dog")


def add(writer: PredictionsWriter, *names: str, **options: Any) -> None:
    for name in names:
        writer.add(name, (100, 50), [[10, 20, 30, 40], [-3, 0, 500, 50]], [0.9, 0.25], [1, 0], **options)


@pytest.fixture(params=["teacher.json", "teacher"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "below" / request.param


def test_what_is_written_is_read(out: Path) -> None:
    with PredictionsWriter(out, CLASSES, every=2) as writer:
        add(writer, "a.jpg", "b.jpg", "c.jpg")
        writer.add("d.jpg", (100, 50), np.zeros((0, 4)), [], [])
    found = read_predictions(out)
    assert found.classes == CLASSES
    assert found.names == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert len(set(found.ids)) == 4
    one = found.of(found.find("data/c.jpg"))  # type: ignore[arg-type]
    np.testing.assert_allclose(one.boxes_M4, [[10, 20, 30, 40], [0, 0, 100, 50]])
    np.testing.assert_allclose(one.scores_M, [0.9, 0.25])
    assert one.labels_M.tolist() == [1, 0]
    assert one.size == (100, 50)
    assert len(found.of(3).boxes_M4) == 0
    files = sorted(path.name for path in out.parent.rglob("*") if path.is_file() and path.name != ".lock")
    assert files == (["teacher.json"] if out.suffix else ["000001.json", "000002.json"])


def test_scores_of_all_classes_and_ids(out: Path) -> None:
    vectors = [[0.05, 0.9], [0.25, 0.2]]
    with PredictionsWriter(out, CLASSES) as writer:
        add(writer, "a.jpg", class_scores_MK=vectors, image_id=17)
        add(writer, "b.jpg", class_scores_MK=vectors, image_id=17)
        add(writer, "c.jpg", class_scores_MK=vectors, image_id="c")
    found = read_predictions(out)
    np.testing.assert_allclose(found.of(2).class_scores_MK, vectors, atol=1e-3)  # type: ignore[arg-type]
    assert list(found.ids) == [17, 0, 1]


def test_goes_on_after_an_interrupt(out: Path) -> None:
    def interrupted() -> None:
        with PredictionsWriter(out, CLASSES, every=2) as writer:
            add(writer, "a.jpg", "b.jpg", "c.jpg")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.suffix == "" or not out.exists()
    with PredictionsWriter(out, CLASSES, every=2) as writer:
        assert len(writer) == 3
        assert "c.jpg" in writer
        add(writer, "d.jpg")
    with PredictionsWriter(out, CLASSES) as writer:  # more images, later
        add(writer, "e.jpg")
    found = read_predictions(out)
    assert found.names == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    assert len(set(found.ids)) == 5
    assert len(found.boxes_N4) == 10


def test_a_piece_is_whole_or_not_there(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt while a piece is written, and a full disk."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def write() -> None:
        with PredictionsWriter(out, CLASSES) as writer:
            add(writer, "a.jpg")

    for stop, error in ((interrupted, KeyboardInterrupt), (full, UserError)):
        with monkeypatch.context() as patch:
            patch.setattr("mmkd.durable.os.fsync", stop)
            with pytest.raises(error):
                write()
    with PredictionsWriter(out, CLASSES) as writer:
        assert len(writer) == 0


def test_nothing_is_written_twice_where_an_interrupt_falls_after_the_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmkd.data import writing

    real = writing.write_json

    def late(*args: Any, **options: Any) -> None:
        monkeypatch.setattr(writing, "write_json", real)
        real(*args, **options)
        raise KeyboardInterrupt

    def write() -> None:
        with PredictionsWriter(tmp_path, CLASSES, every=1) as writer:
            monkeypatch.setattr(writing, "write_json", late)
            add(writer, "a.jpg")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert read_predictions(tmp_path).names == ["a.jpg"]


@pytest.mark.parametrize(
    ("classes", "about"), [(("dog", "cat"), {"weights": "a"}), (CLASSES, {"weights": "b"}), (CLASSES, {})]
)
def test_predictions_of_something_else(out: Path, classes: tuple[str, ...], about: dict[str, str]) -> None:
    with PredictionsWriter(out, CLASSES, {"weights": "a"}) as writer:
        add(writer, "a.jpg")
    with pytest.raises(UserError, match="of another run") as error, PredictionsWriter(out, classes, about):
        pass
    assert ("weights" in str(error.value)) == (classes == CLASSES)
    with PredictionsWriter(out, CLASSES, {"weights": "a"}) as writer:  # it is not locked any more
        assert "a.jpg" in writer


def test_a_file_that_is_not_mmkds(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps([{"image_id": 1}]))
    with (
        pytest.raises(UserError, match="no predictions to continue from"),
        PredictionsWriter(tmp_path, CLASSES),
    ):
        pass


def test_one_process_at_a_time(out: Path) -> None:
    with (
        PredictionsWriter(out, CLASSES),
        pytest.raises(UserError, match="Another process"),
        PredictionsWriter(out, CLASSES),
    ):
        pass


NAN = float("nan")


@pytest.mark.parametrize(
    ("box", "score", "label", "match"),
    [
        ([[0, 0, NAN, 9]], [0.5], [0], "finite boxes"),
        ([[0, 0, 9, 9]], [NAN], [0], "from 0 to 1"),
        ([[0, 0, 9, 9]], [2.5], [0], "2.5"),
        ([[0, 0, 9, 9]], [0.5], [2], "labels from 0 to 1: cat, dog"),
        ([[0, 0, 9, 9]], [0.5, 0.6], [0], "as many boxes"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, box: Any, score: Any, label: Any, match: str) -> None:
    def write() -> None:
        with PredictionsWriter(tmp_path, CLASSES) as writer:
            add(writer, "a.jpg")
            writer.add("b.jpg", (10, 10), box, score, label)

    with pytest.raises(UserError, match=match):
        write()
    assert read_predictions(tmp_path).names == ["a.jpg"]


def test_boxes_without_area_are_left_out(tmp_path: Path) -> None:
    with PredictionsWriter(tmp_path, CLASSES) as writer:
        boxes = [[5, 5, 5, 9], [20, 2, 30, 8], [1, 1, 1.001, 4], [1, 1, 2, 2]]
        writer.add("a.jpg", (10, 10), boxes, [0.5] * 4, [0] * 4)
    assert read_predictions(tmp_path).boxes_N4.tolist() == [[1, 1, 2, 2]]


def test_an_image_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="twice"), PredictionsWriter(tmp_path, CLASSES) as writer:
        add(writer, "a.jpg", "a.jpg")
    with pytest.raises(UserError, match="every=0"):
        PredictionsWriter(tmp_path, CLASSES, every=0)
