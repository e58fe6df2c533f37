from __future__ import annotations

import pytest
import torch

from mmkd.structures import DenseOutputs, HeadSpec
from mmkd.teachers.entries import assemble, pack

CPU = torch.device("cpu")
SPEC = HeadSpec(3, 3, True, ((8, 8), (16, 16)), (2, 1))


def outputs(images: int, height: int, width: int, feats: bool = True, seed: int = 0) -> DenseOutputs:
    """Two levels, two base priors on the first."""
    torch.manual_seed(seed)

    def maps(channels: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.randn(images, c, height // step, width // step) for c, step in zip(channels, (8, 16))
        )

    seen = maps((5, 5))
    return DenseOutputs(
        spec=SPEC,
        feats=seen if feats else tuple(level.to("meta") for level in seen),
        cls_logits=maps((6, 3)),
        bbox_pred=maps((8, 4)),
        extra={"centerness": maps((2, 1))},
    )


@pytest.mark.parametrize("feats", [True, False])
def test_a_batch_comes_back(feats: bool) -> None:
    batch = outputs(3, 32, 48, feats)
    entries = [pack(batch, i, torch.float32, None) for i in range(3)]
    back = assemble(entries, SPEC, CPU)
    assert back.known_N is None
    assert [level.shape[-2:] for level in back.feats] == [level.shape[-2:] for level in batch.feats]
    assert back.feats[0].is_meta == (not feats)
    assert set(back.extra) == {"centerness"}
    skip = 0 if feats else 2
    for ours, theirs in zip(back.levels()[skip:], batch.levels()[skip:], strict=True):
        assert torch.equal(ours, theirs)


def test_half_precision_stays_in_its_range() -> None:
    batch = outputs(1, 32, 48)
    assert batch.bbox_pred is not None
    batch.bbox_pred[0][0, 0, 0, 0] = 1e6
    back = assemble([pack(batch, 0, torch.float16, None)], SPEC, CPU)
    assert back.bbox_pred is not None
    assert back.bbox_pred[0].dtype == torch.float32
    assert back.bbox_pred[0][0, 0, 0, 0] == torch.finfo(torch.float16).max
    torch.testing.assert_close(back.flat_cls_logits(), batch.flat_cls_logits(), rtol=1e-3, atol=1e-3)


def test_a_smaller_image_is_padded_at_the_right_and_bottom() -> None:
    large, small = outputs(1, 32, 48), outputs(1, 16, 64, seed=1)
    back = assemble([pack(one, 0, torch.float32, None) for one in (large, small)], SPEC, CPU)
    assert back.cls_logits is not None
    assert large.cls_logits is not None
    assert small.cls_logits is not None
    assert back.cls_logits[0].shape == (2, 6, 4, 8)
    assert torch.equal(back.cls_logits[0][0, :, :, :6], large.cls_logits[0][0])
    assert not back.cls_logits[0][0, :, :, 6:].any()
    assert torch.equal(back.cls_logits[0][1, :, :2], small.cls_logits[0][0])
    assert not back.cls_logits[0][1, :, 2:].any()


@pytest.mark.parametrize("top", [1, 7, 10_000])
def test_the_surest_priors_alone(top: int) -> None:
    batch = outputs(2, 32, 48)
    entries = [pack(batch, i, torch.float32, top) for i in range(2)]
    count = 4 * 6 * 2 + 2 * 3
    kept = min(top, count)
    assert entries[0]["cls_logits"].shape == (kept, 3)
    assert entries[0]["bbox_pred"].shape == (kept, 4)
    back = assemble(entries, SPEC, CPU)
    assert back.known_N is not None
    assert back.known_N.shape == back.top_scores().shape
    assert int(back.known_N.sum()) == 2 * kept
    for ours, theirs in (
        (back.flat_cls_logits(), batch.flat_cls_logits()),
        (_flat(back.bbox_pred, 4), _flat(batch.bbox_pred, 4)),
        (_flat(back.extra["centerness"], 1), _flat(batch.extra["centerness"], 1)),
    ):
        assert torch.equal(ours[back.known_N], theirs[back.known_N])
        assert not ours[~back.known_N].any()
    image_N = torch.cat([torch.arange(2).repeat_interleave(4 * 6 * 2), torch.arange(2).repeat_interleave(6)])
    for image in range(2):
        scores = batch.top_scores()[image_N == image]
        kept_scores = batch.top_scores()[back.known_N & (image_N == image)]
        assert torch.equal(kept_scores.sort().values, scores.topk(kept).values.sort().values)
    for ours, theirs in zip(back.feats, batch.feats):
        assert torch.equal(ours, theirs)


def test_known_priors_of_images_of_different_sizes() -> None:
    back = assemble(
        [pack(outputs(1, 32, 48), 0, torch.float32, 5), pack(outputs(1, 16, 64), 0, torch.float32, 5)],
        SPEC,
        CPU,
    )
    assert back.known_N is not None
    assert len(back.known_N) == len(back.flat_cls_logits())
    assert torch.equal(back.known_N, back.flat_cls_logits().any(dim=1))


def _flat(levels: tuple[torch.Tensor, ...] | None, channels: int) -> torch.Tensor:
    assert levels is not None
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in levels])
