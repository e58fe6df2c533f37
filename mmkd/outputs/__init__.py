"""Outputs of detectors: features of any detector, and predictions at RoIs, queries and masks."""

from mmkd.outputs import (  # noqa: F401  (they register places and readers)
    boxes,
    grid,
    mask_queries,
    prior_masks,
    queries,
    shared_queries,
    sparse,
)
from mmkd.outputs.detections import detect, detections, of_classes, within
from mmkd.outputs.example import example_pixels
from mmkd.outputs.features import (
    Recorded,
    dense_head,
    dense_layout,
    encode,
    has_dense_head,
    has_own_memory,
    student_layout,
    tested_branch,
)
from mmkd.outputs.masks import Masks
from mmkd.outputs.place import (
    DENSE,
    PLACES,
    Place,
    Reading,
    default_place,
    find_place,
    register_place,
    split_places,
)
from mmkd.outputs.rois import Rois
from mmkd.outputs.with_features import of_images, with_features

__all__ = [
    "DENSE",
    "PLACES",
    "Masks",
    "Place",
    "Reading",
    "Recorded",
    "Rois",
    "default_place",
    "dense_head",
    "dense_layout",
    "detect",
    "detections",
    "encode",
    "example_pixels",
    "find_place",
    "has_dense_head",
    "has_own_memory",
    "of_classes",
    "of_images",
    "register_place",
    "split_places",
    "student_layout",
    "tested_branch",
    "with_features",
    "within",
]
