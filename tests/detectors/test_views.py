from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from mmkd.detectors.views import teachers_view
from mmkd.errors import UserError

from ..conftest import batch, build, distilled, losses_of, tiny_atss, tiny_teacher

SHAPES = ((64, 96), (96, 64), (96, 96))


def student(**loss: Any) -> Any:
    terms = {"cls": {"type": "DistillationLoss", "region": "teacher", **loss}}
    return build(distilled(tiny_atss(), tiny_teacher(), distill=terms))


def with_views(data: dict[str, Any], *index: int) -> dict[str, Any]:
    """The student's images are other ones; the teacher's those of the data."""
    seen = copy.deepcopy(data)
    for i in index:
        seen["data_samples"][i].set_data({"teacher_img": data["inputs"][i]})
        seen["inputs"][i] = 255 - data["inputs"][i].float()
    return seen


def test_the_teacher_is_asked_about_its_own_view() -> None:
    model, data = student(), batch(*SHAPES)
    wanted = model.data_preprocessor(copy.deepcopy(data), True)
    asked: list[torch.Tensor] = []
    ask = model.teacher.ask
    model.teacher.ask = lambda inputs, samples: (asked.append(inputs), ask(inputs, samples))[1]
    for index in ((0, 1, 2), (1,), ()):
        seen = with_views(data, *index)
        losses = losses_of(model, seen)
        assert torch.equal(asked.pop(), wanted["inputs"]), index
        assert losses["loss_kd_cls"] > 0


def test_a_batch_without_views_is_passed_on_as_it_is() -> None:
    model = student()
    data = model.data_preprocessor(batch(*SHAPES), True)
    assert teachers_view(model, data["inputs"], data["data_samples"]) is data["inputs"]


def test_images_that_were_resized_after_packing_are_refused() -> None:
    model = student()
    data = model.data_preprocessor(with_views(batch(*SHAPES), 1), True)
    data["data_samples"][1].set_metainfo({"img_shape": (48, 32)})
    with pytest.raises(UserError, match=r"differ in size[\s\S]*64×96[\s\S]*32×48[\s\S]*batch_augments"):
        teachers_view(model, data["inputs"], data["data_samples"])
