from __future__ import annotations

from mmkd.project.configs import learning_rate


def test_the_learning_rate_follows_the_batch() -> None:
    assert learning_rate(None, 8).value == 0.001
    assert learning_rate(None, 2).value == 0.0005
    sgd = {
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.01}},
        "auto_scale_lr": {"base_batch_size": 16},
    }
    assert learning_rate(sgd, 4).value == 0.0025
    adam = {
        "optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 0.004}},
        "auto_scale_lr": {"base_batch_size": 256},
    }
    assert learning_rate(adam, 16).value == 0.001
    assert "0.004 is for batch size 256" in learning_rate(adam, 16).why
