"""Unlabelled images, batches that mix them with labelled ones, prediction files, and views of images."""

from mmkd.data.image_lists import ImageList, listed_images
from mmkd.data.mixed_batches import MixedBatchSampler
from mmkd.data.prediction_files import read_predictions
from mmkd.data.predictions import Predictions
from mmkd.data.short_epochs import ShortEpochs
from mmkd.data.two_views import VIEW, PackTwoViews
from mmkd.data.unlabelled import UnlabelledImages, is_labelled
from mmkd.data.views import TracedPipeline, follow
from mmkd.data.writing import PredictionsWriter

__all__ = [
    "VIEW",
    "ImageList",
    "MixedBatchSampler",
    "PackTwoViews",
    "Predictions",
    "PredictionsWriter",
    "ShortEpochs",
    "TracedPipeline",
    "UnlabelledImages",
    "follow",
    "is_labelled",
    "listed_images",
    "read_predictions",
]
