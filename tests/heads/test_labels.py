from __future__ import annotations

import torch

from mmkd.heads.labels import classes_of, image_by_image
from mmkd.structures import DenseOutputs, HeadSpec


def test_from_images_first_to_the_order_of_the_outputs() -> None:
    levels = tuple(torch.randn(3, 2 * 4, h, w) for h, w in ((3, 2), (1, 2)))  # A = 2, K = 4
    images = [torch.cat([level[i].permute(1, 2, 0).reshape(-1, 4) for level in levels]) for i in range(3)]
    spec = HeadSpec(4, 4, True, ((8, 8), (16, 16)), (2, 2))
    flat = DenseOutputs(spec=spec, feats=levels, cls_logits=levels).flat_cls_logits()
    assert torch.equal(torch.cat(images)[image_by_image(levels, 4)], flat)


def test_classes_of_soft_targets() -> None:
    soft = torch.tensor([[0.0, 0.3, 0.0], [0.0, 0.0, 0.0], [0.1, 0.1, 0.8], [1e-6, 0, 0]])
    assert classes_of(soft, 3).tolist() == [1, 3, 2, 0]
    assert classes_of(soft[None], 3).tolist() == [1, 3, 2, 0]
    indices = torch.tensor([1, 3])
    assert classes_of(indices, 3) is indices
