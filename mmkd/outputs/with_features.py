"""Run a detector's heads on given features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def with_features(detector: Any, feats: Any) -> Iterator[None]:
    """Make a detector's ``extract_feat`` return these features, so backbone and neck do not run again.

    Its ``loss`` and ``predict`` then run only its heads.

    Args:
        detector: any mmdet detector.
        feats: the output of its ``extract_feat`` for the images passed to its heads.

    Example:
        >>> with with_features(detector, detector.extract_feat(inputs_BCHW)):
        ...     losses = detector.loss(inputs_BCHW, data_samples)
    """
    own = vars(detector)
    before = {"extract_feat": own["extract_feat"]} if "extract_feat" in own else {}
    own["extract_feat"] = lambda *_, **__: feats
    try:
        yield
    finally:
        del own["extract_feat"]
        own.update(before)


def of_images(feats: Any, index: Sequence[int], images: int) -> Any:
    """The features of some of a batch's images, in the given order.

    Args:
        feats: the output of ``extract_feat``: tensors, alone or in tuples, lists and dicts. TridentNet
            repeats each image once per branch, branch after branch.
        index: the images to keep.
        images: the number of images in the batch.

    Example:
        >>> feats = (torch.arange(4).reshape(4, 1, 1, 1),)
        >>> of_images(feats, [3, 1], 4)[0].flatten()
        tensor([3, 1])
    """
    if isinstance(feats, Tensor):
        if len(feats) == images:
            return feats[list(index)]
        return feats.unflatten(0, (-1, images))[:, list(index)].flatten(0, 1)
    if isinstance(feats, Mapping):
        return {key: of_images(part, index, images) for key, part in feats.items()}
    if isinstance(feats, (list, tuple)):
        return type(feats)(of_images(part, index, images) for part in feats)
    return feats
