from __future__ import annotations

from typing import Any

import pytest
import torch

from mmkd.outputs import of_images, with_features

from ..conftest import batch, build, tiny_atss


def test_backbone_and_neck_do_not_run() -> None:
    model = build(tiny_atss()).eval()
    data = model.data_preprocessor(batch((64, 96), (96, 96), (96, 64)), True)
    inputs, samples = data["inputs"], data["data_samples"]
    feats = model.extract_feat(inputs)
    expected = model.loss(inputs[[2, 0]], [samples[2], samples[0]])
    runs: list[Any] = []
    handle = model.backbone.register_forward_hook(lambda *_: runs.append(1))
    with with_features(model, of_images(feats, [2, 0], 3)):
        found = model.loss(inputs[[2, 0]], [samples[2], samples[0]])
        assert len(model.predict(inputs[[2, 0]], [samples[2], samples[0]])) == 2
    assert not runs
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    model.extract_feat(inputs)
    handle.remove()
    assert runs, "afterwards it runs again"


def test_what_was_there_comes_back_even_after_an_error() -> None:
    model = build(tiny_atss())
    with pytest.raises(KeyError), with_features(model, ()):
        raise KeyError
    assert "extract_feat" not in vars(model)
    vars(model)["extract_feat"] = "mine"
    with with_features(model, "outer"), with_features(model, "inner"):
        assert model.extract_feat(None) == "inner"
    assert model.extract_feat == "mine"


def test_features_in_any_container_and_of_branches() -> None:
    level = torch.arange(4.0).reshape(4, 1, 1, 1)
    found = of_images({"visual": [level, (level + 4,)], "text": None}, [3, 1], 4)
    assert found["visual"][0].flatten().tolist() == [3, 1]
    assert found["visual"][1][0].flatten().tolist() == [7, 5]
    assert found["text"] is None
    branches = torch.arange(6).reshape(6, 1, 1, 1)  # two images in three branches
    assert of_images((branches,), [1], 2)[0].flatten().tolist() == [1, 3, 5]
