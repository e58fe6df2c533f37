"""Writes predictions in pieces, so that an interruption loses little and no image is predicted twice.

Shape suffixes: M boxes of one image, K classes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from mmkd.durable import write_json
from mmkd.errors import UserError

_LOCK = ".lock"


class PredictionsWriter:
    """Writes files for `read_predictions`, image by image, from any detector.

    Use it as a context manager. Predictions are written to disk after every ``every`` images and at the end
    of the context, also on an error or Ctrl-C. Another writer for the same place then continues:
    ``name in writer`` tells whether an image is finished.

    Args:
        out: a file ending in ``.json``, assembled from its pieces at the end; or, for large sets, a folder of
            such files.
        classes: class names, in the order of the labels.
        about: what the predictions depend on, as JSON values, for example a digest of the weights. It is
            stored in the files, and predictions with another value are not mixed in.
        every: images per piece.

    Raises:
        UserError: existing files belong to another detector or are unreadable, or another process writes
            there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with PredictionsWriter(f"{folder}/teacher.json", ["cat", "dog"]) as writer:
        ...         writer.add("a.jpg", (640, 480), [[10, 20, 50, 60]], [0.9], [1])
        ...     with PredictionsWriter(f"{folder}/teacher.json", ["cat", "dog"]) as writer:
        ...         "a.jpg" in writer
        True
    """

    def __init__(
        self,
        out: str | Path,
        classes: Sequence[str],
        about: Mapping[str, Any] | None = None,
        every: int = 1000,
    ) -> None:
        if every < 1:
            raise UserError(f"expected at least one image per file, found every={every}")
        self.out, self.classes, self.every = Path(out), tuple(classes), every
        self.about = json.loads(json.dumps(dict(about or {})))
        self._is_file = self.out.suffix == ".json"
        self.folder = self.out.with_name(f"{self.out.name}.parts") if self._is_file else self.out
        self._lock = FileLock(self.folder / _LOCK)
        self._names: set[str] = set()
        self._ids: set[Any] = set()
        self._next_id, self._next_piece = 0, 1
        self._pending: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []

    def __enter__(self) -> PredictionsWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"Another process is writing predictions to {self.out}.",
                expected="one process at a time",
                found=f"{self.folder / _LOCK} is locked",
                remedy="wait for it, or choose another output path",
            ) from None
        try:
            for file in self._files():
                self._know(file)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            self._write()
            if kind is None and self._is_file:
                self._join()
        finally:
            self._lock.release()
        if kind is None and self._is_file:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def add(
        self,
        name: str,
        size: tuple[int, int],
        boxes_M4: npt.ArrayLike,
        scores_M: npt.ArrayLike,
        labels_M: npt.ArrayLike,
        class_scores_MK: npt.ArrayLike | None = None,
        image_id: Any = None,
    ) -> None:
        """Add the predictions for one image; boxes are clipped to it, empty ones dropped.

        Args:
            name: the file name, with enough of its folders to be unique; the path from the student's data set
                must end with it.
            size: (width, height) of the image file.
            boxes_M4: x1, y1, x2, y2 in pixels of that file.
            scores_M: in [0, 1].
            labels_M: class indices.
            class_scores_MK: a score in [0, 1] for each class, if available.
            image_id: its id in an annotation file; replaced by a new number if it is taken or not a number.

        Raises:
            UserError: numbers are not finite or out of range, or the image was already added.
        """
        if name in self._names:
            raise UserError(
                f"{name} was predicted twice.",
                expected="each image once",
                found=f"a duplicate among {len(self)} in {self.out}",
                remedy="include the folder in the names, so that they are unique",
            )
        width, height = (int(side) for side in size)
        boxes_M4 = np.asarray(boxes_M4, dtype=np.float64).reshape(-1, 4)
        scores_M = np.asarray(scores_M, dtype=np.float64).reshape(-1)
        labels_M = np.asarray(labels_M, dtype=np.int64).reshape(-1)
        vectors_MK = None
        if class_scores_MK is not None:
            vectors_MK = np.asarray(class_scores_MK, dtype=np.float64).reshape(-1, len(self.classes))
        self._check(name, boxes_M4, scores_M, labels_M, vectors_MK)
        boxes_M4 = boxes_M4.clip(0, [width, height, width, height])
        xywh_M4 = np.concatenate([boxes_M4[:, :2], boxes_M4[:, 2:] - boxes_M4[:, :2]], axis=1).round(2)
        key = self._new_id(image_id)
        found = []
        for row in np.flatnonzero((xywh_M4[:, 2:] > 0).all(1)).tolist():
            box = {
                "image_id": key,
                "category_id": int(labels_M[row]) + 1,
                "bbox": xywh_M4[row].tolist(),
                "score": round(float(scores_M[row]), 4),
            }
            if vectors_MK is not None:
                box["scores"] = vectors_MK[row].round(4).tolist()
            found.append(box)
        self._pending.append(({"id": key, "file_name": name, "width": width, "height": height}, found))
        self._names.add(name)
        if len(self._pending) >= self.every:
            self._write()

    def _check(self, name: str, boxes_M4: Any, scores_M: Any, labels_M: Any, vectors_MK: Any) -> None:
        expected, found = "", ""
        K = len(self.classes)
        counts = [len(one) for one in (boxes_M4, scores_M, labels_M, vectors_MK) if one is not None]
        scores = [one for one in (scores_M, vectors_MK) if one is not None]
        if len(set(counts)) > 1:
            expected, found = "as many boxes as scores and labels", ", ".join(map(str, counts))
        elif not np.isfinite(boxes_M4).all():
            expected, found = "finite boxes", f"{boxes_M4[~np.isfinite(boxes_M4).all(1)][0].tolist()}"
        elif any(not ((one >= 0) & (one <= 1)).all() for one in scores):
            wrong = next(one[~((one >= 0) & (one <= 1))] for one in scores)
            expected, found = "scores from 0 to 1, not logits", f"{wrong[0]}" if len(wrong) else "others"
        elif not ((labels_M >= 0) & (labels_M < K)).all():
            expected, found = f"labels from 0 to {K - 1}: {', '.join(self.classes[:10])}", f"{labels_M.max()}"
        if expected:
            raise UserError(
                f"Invalid predictions for {name}.",
                expected=expected,
                found=found,
                remedy="correct the detector or its class names; previous predictions are kept",
            )

    def _new_id(self, wanted: Any) -> int:
        if not isinstance(wanted, int) or wanted in self._ids:
            while self._next_id in self._ids:
                self._next_id += 1
            wanted = self._next_id
        self._ids.add(wanted)
        return int(wanted)

    def _files(self) -> list[Path]:
        whole = [self.out] if self._is_file and self.out.exists() else []
        return [*whole, *sorted(self.folder.glob("*.json"))]

    def _know(self, file: Path) -> None:
        try:
            content = json.loads(file.read_bytes())
            images = content["images"]
            given = content.get("info") or {}
            classes = [one["name"] for one in content["categories"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} contains no predictions to continue from.",
                expected="a file written by mmkd",
                found=f"{file.stat().st_size} bytes ({type(error).__name__}: {error})",
                remedy="remove it, or choose another output path",
            ) from None
        mine, theirs = {"classes": [*self.classes], **self.about}, {"classes": classes, **given}
        other = [key for key in dict.fromkeys([*mine, *theirs]) if mine.get(key) != theirs.get(key)]
        if other:
            raise UserError(
                f"{file} contains predictions of another run.",
                expected="; ".join(f"{key} {mine.get(key)}" for key in other),
                found="; ".join(f"{key} {theirs.get(key)}" for key in other),
                remedy=f"choose another output path, or remove {self.out} to start over",
            )
        self._names.update(one["file_name"] for one in images)
        self._ids.update(one["id"] for one in images)
        if file.stem.isdecimal():
            self._next_piece = max(self._next_piece, int(file.stem) + 1)

    def _write(self) -> None:
        if not self._pending:
            return
        path = self.folder / f"{self._next_piece:06d}.json"
        self._put(
            path, [one for one, _ in self._pending], [box for _, found in self._pending for box in found]
        )
        self._pending = []  # before the counter: an interrupt between the two must not write it twice
        self._next_piece += 1

    def _join(self) -> None:
        files = self._files()
        if files == [self.out]:
            return
        parts = [json.loads(file.read_bytes()) for file in files]
        self._put(
            self.out,
            [one for part in parts for one in part["images"]],
            [box for part in parts for box in part["annotations"]],
        )

    def _put(self, path: Path, images: Sequence[Any], boxes: Sequence[Any]) -> None:
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes, start=1)]
        content = {"info": self.about, "categories": categories, "images": images, "annotations": boxes}
        remedy = "free some space, then rerun the same command to continue"
        write_json(path, content, indent=None, remedy=remedy)
