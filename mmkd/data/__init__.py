"""Images without labels, and batches that mix them with labelled ones."""

from mmkd.data.image_lists import ImageList, listed_images
from mmkd.data.mixed_batches import MixedBatchSampler
from mmkd.data.unlabelled import UnlabelledImages, is_labelled

__all__ = ["ImageList", "MixedBatchSampler", "UnlabelledImages", "is_labelled", "listed_images"]
