from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmkd.structures import DenseOutputs, DistillContext, HeadSpec

from .losses.contract import make_case


def test_flat_logits_follow_levels_images_positions_priors() -> None:
    spec = HeadSpec(2, 2, True, ((8, 8), (16, 16)), (2, 2))
    first = torch.arange(2 * 4 * 3 * 2).reshape(2, 4, 3, 2).float()
    second = 1000 + torch.arange(2 * 4 * 1 * 1).reshape(2, 4, 1, 1).float()
    flat = DenseOutputs(spec, (), (first, second)).flat_cls_logits()
    rows = []
    for level in (first, second):
        for image in level:
            for y in range(image.shape[1]):
                for x in range(image.shape[2]):
                    for prior in range(2):
                        rows.append(image[2 * prior : 2 * prior + 2, y, x])
    assert torch.equal(flat, torch.stack(rows))


def test_which_image_and_level_each_prior_is_of() -> None:
    spec = HeadSpec(3, 3, True, ((8, 8), (16, 16)), (2, 1))
    levels = (torch.zeros(2, 6, 1, 2), torch.zeros(2, 3, 1, 1))
    for part in ("cls_logits", "bbox_pred", "boxes", "feats"):
        outputs = DenseOutputs(**{"spec": spec, "feats": (), part: levels})  # type: ignore[arg-type]
        assert outputs.image_N.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]
        assert outputs.rows_per_level == [8, 2]
    none = DenseOutputs(spec, (torch.zeros(0, 4, 1, 2), torch.zeros(0, 4, 1, 1)))
    assert (len(none.image_N), none.rows_per_level) == (0, [0, 0])


def test_top_scores() -> None:
    student, _, _ = make_case()
    sigmoid = student.flat_cls_logits().sigmoid().max(1).values
    torch.testing.assert_close(student.top_scores(), sigmoid.float())

    background = replace(student.spec, num_classes=2, use_sigmoid=False)
    outputs = replace(student, spec=background)
    softmax = student.flat_cls_logits().softmax(1)[:, :2].max(1).values
    torch.testing.assert_close(outputs.top_scores(), softmax.float())


def test_what_was_not_asked_for_cannot_be_read() -> None:
    student, _, _ = make_case()
    with pytest.raises(AssertionError, match="not requested"):
        replace(student, cls_logits=None).flat_cls_logits()


def test_mean_over_one_process_is_the_value_itself() -> None:
    context = DistillContext(torch.ones(1).bool(), 1, [None])
    value = torch.tensor(3.0, requires_grad=True)
    mean = context.mean_over_processes(value)
    assert mean == 3
    assert not mean.requires_grad
