"""`UnlabelledImages`: a data set of image files without annotations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.datasets.transforms import Albu, RandomCrop
from PIL import Image

from mmkd.data.image_lists import ImageList, listed_images
from mmkd.data.two_views import nested
from mmkd.errors import UserError
from mmkd.registry import DATASETS

# This many consecutive images without a sample are no coincidence.
_DROPPED = 50


@DATASETS.register_module()
class UnlabelledImages(BaseDetDataset):
    """Images without annotations: used by the distillation losses, ignored by the student's own losses.

    Use it with the pipeline of a labelled data set. Annotations are then empty, and each sample has
    ``labelled=False`` in its metadata, whichever keys the pipeline keeps. Images are opened only when they
    are trained on; width and height are read when a sampler needs them.

    Args:
        images: a folder, read recursively; a ``.txt`` file with one name per line; a ``.json`` file in COCO
            format, whose annotations are ignored; image files; or a list of these. Relative to ``data_root``.
        leave_out: images to exclude, such as the labelled ones, in the same form.
        data_prefix: ``img`` is the folder that names in text and COCO files are relative to, itself relative
            to ``data_root``; as in `CocoDataset`.
        filter_cfg: ``min_size`` excludes images with a shorter side; this opens all images at the start,
            except those listed in a COCO file. ``filter_empty_gt`` is ignored.
        **options: options of `BaseDetDataset`: ``pipeline``, ``data_root``, ``indices``, ``metainfo``, …

    Raises:
        UserError: a list is unreadable or empty, all images are excluded, or a transform drops samples
            without objects.

    Example:
        >>> data = UnlabelledImages(images="images/train", data_root="data/cards")
        >>> data.get_data_info(0)["instances"]
        []
    """

    def __init__(
        self,
        images: ImageList,
        leave_out: ImageList | None = None,
        data_prefix: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        if options.get("ann_file"):
            raise UserError(
                "UnlabelledImages reads no annotations.",
                expected="images='…', a folder or a list",
                found=f"ann_file={options['ann_file']!r}",
                remedy="pass it as `images`; only the images of a COCO file are used",
            )
        self.images, self.leave_out = images, leave_out
        self._dropped_in_a_row = 0
        super().__init__(data_prefix=dict(data_prefix or {"img": ""}), **options)
        for transform in self.pipeline.transforms:
            for inner in nested(transform):
                _check_keeps_empty(inner)

    def load_data_list(self) -> list[dict[str, Any]]:
        """The images of the lists, without instances."""
        root, folder = self.data_root or "", self.data_prefix.get("img", "")
        found = listed_images(self.images, root, folder, "images")
        if self.leave_out is not None:
            out = {
                os.path.realpath(path) for path in listed_images(self.leave_out, root, folder, "leave_out")
            }
            kept = {path: about for path, about in found.items() if os.path.realpath(path) not in out}
            if len(kept) == len(found) or not kept:
                raise UserError(
                    "`leave_out` excludes " + ("all images." if not kept else "none of the images."),
                    expected="some of the images, matched by path",
                    found=f"{len(found)} images, {len(out)} to exclude, {len(found) - len(kept)} in common",
                    remedy="correct one of the two lists, or data_prefix=dict(img=…), the root folder of "
                    "names in text and COCO files",
                )
            found = kept
        text = (
            {"text": self.metainfo["classes"], "caption_prompt": self.caption_prompt, "custom_entities": True}
            if self.return_classes
            else {}
        )
        return [
            # Keyed by path, so that other images in the list do not affect the teacher's cache.
            {"img_path": path, "img_id": os.path.relpath(path, root or "."), "instances": [], **text, **about}
            for path, about in found.items()
        ]

    def filter_data(self) -> list[dict[str, Any]]:
        """Remove images that are too small."""
        least = (self.filter_cfg or {}).get("min_size", 0)
        if self.test_mode or not least:
            return self.data_list
        return [info for info in self.data_list if min(_size_of(info)) >= least]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """As `BaseDataset.get_data_info`; ``width`` and ``height`` are read on first access."""
        return _Info(super().get_data_info(idx))

    def prepare_data(self, idx: int) -> Any:
        """A sample of the pipeline, marked as unlabelled.

        Raises:
            UserError: the pipeline returns no packed sample, or drops image after image.
        """
        data = self.pipeline(self.get_data_info(idx))
        if data is None:
            self._dropped_in_a_row += 1
            if self._dropped_in_a_row >= _DROPPED:
                dropping = self._which_drops(idx)
                raise _drops(dropping, f"the last {_DROPPED} images were dropped by {dropping}", "")
            return None
        self._dropped_in_a_row = 0
        sample = data.get("data_samples") if isinstance(data, Mapping) else None
        if sample is None:
            raise UserError(
                "The pipeline of UnlabelledImages does not pack its samples.",
                expected="a pipeline ending with PackDetInputs",
                found=" → ".join(type(one).__name__ for one in self.pipeline.transforms) or "no transform",
                remedy="move the transforms of the wrapper (MultiImageMixDataset) into its pipeline, with "
                "CachedMosaic and CachedMixUp",
            )
        sample.set_metainfo({"labelled": False})
        for instances in (sample.gt_instances, sample.ignored_instances):
            if "bboxes" not in instances:  # the pipeline loads no annotations
                instances.bboxes = torch.zeros(0, 4)
                instances.labels = torch.zeros(0, dtype=torch.long)
        return data

    def _which_drops(self, idx: int) -> str:
        """The name of the transform that drops an image; the last one's if it does not happen again."""
        data: Any = self.get_data_info(idx)
        for transform in self.pipeline.transforms:
            data = transform(data)
            if data is None:
                break
        return type(transform).__name__


class _Info(dict[str, Any]):
    """An image whose size is read on first access."""

    def __missing__(self, key: str) -> Any:
        if key not in ("width", "height"):
            raise KeyError(key)
        self["width"], self["height"] = _size_of(self)
        return self[key]


def is_labelled(sample: Any) -> bool:
    """Whether a data sample has annotations, even if they contain no objects."""
    return bool(sample.metainfo.get("labelled", True))


def _size_of(info: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height, as mmcv loads the image."""
    if "width" in info and "height" in info:
        return info["width"], info["height"]
    path = Path(info["img_path"])
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size
    except OSError as error:
        raise UserError(
            "Cannot read image.",
            expected="an image file",
            found=f"{path} ({error})",
            remedy="restore it, or remove it from the list",
        ) from error


def _check_keeps_empty(transform: Any) -> None:
    for kind, option, kept in (
        (RandomCrop, "allow_negative_crop", True),
        (Albu, "skip_img_without_anno", False),
    ):
        if isinstance(transform, kind) and getattr(transform, option) is not kept:
            raise _drops(kind.__name__, f"{option}={not kept}", f"set {option}={kept}, or ")


def _drops(name: str, found: str, remedy: str) -> UserError:
    return UserError(
        f"{name} drops images without objects, so it would drop all UnlabelledImages.",
        expected="a pipeline that keeps images without objects",
        found=found,
        remedy=f"{remedy}remove {name} from the pipeline of the unlabelled images",
    )
