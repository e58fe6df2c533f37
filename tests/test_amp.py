from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import mmengine.optim.optimizer.amp_optimizer_wrapper as amp_wrapper
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.utils import digit_version

from mmkd.amp import use_amp
from mmkd.detectors.finite import TOLERATED
from mmkd.errors import UserError

from .conftest import batch, build, distilled, losses_of, repeats, save_teacher, tiny_atss, tiny_teacher
from .distributed import LD, TERMS, losses_and_gradients
from .outputs import two_stage

# Value and direction of the gradient, against float32: measured 0.0032 and 0.012, the worst of all terms.
VALUE, DIRECTION = 0.01, 0.05
# Float16 is slow on processors.
HALVES = [torch.bfloat16, torch.float16][: repeats(1, 2)]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", {"type": "BFloat16OptimWrapper"}),
        ("cuda", {"type": "AmpOptimWrapper", "loss_scale": "dynamic"}),
    ],
)
def test_wrapper_for_the_device(device: str, expected: dict[str, str]) -> None:
    wrapper = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}}
    cfg = ConfigDict(optim_wrapper=wrapper)
    use_amp(cfg, device)
    assert cfg.optim_wrapper == {**expected, "optimizer": {"type": "SGD", "lr": 0.1}}


def test_forward_in_bfloat16_and_the_rest_in_float32() -> None:
    model = build(tiny_atss())
    cfg = {"type": "BFloat16OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}, "accumulative_counts": 2}
    optim_wrapper = build_optim_wrapper(model, cfg)
    seen = []
    model.neck.register_forward_hook(lambda *call: seen.append(call[-1][0].dtype))
    before = copy.deepcopy(model.state_dict())
    optim_wrapper.initialize_count_status(model, 0, 4)
    for step in range(2):
        logs = model.train_step(copy.deepcopy(batch()), optim_wrapper)
        assert all(value.dtype == torch.float32 for value in logs.values())
        changed = not torch.equal(before["neck.fpn_convs.0.conv.weight"], model.neck.fpn_convs[0].conv.weight)
        assert changed == (step == 1), "accumulative_counts holds"
    assert seen == [torch.bfloat16] * 2
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32, "autocast ended"


def test_a_student_whose_layers_lack_bfloat16_is_refused() -> None:
    model = build(two_stage.small(two_stage.FASTER))
    wrapper = build_optim_wrapper(
        model, {"type": "BFloat16OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}}
    )
    with pytest.raises(UserError, match=r"Cannot train FasterRCNN in bfloat16(.|\n)*without --amp"):
        model.train_step(two_stage.batch(), wrapper)
    with pytest.raises(RuntimeError, match="another"), wrapper.optim_context(model):
        raise RuntimeError("another error")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pth", tiny_teacher())


@pytest.mark.soak
@pytest.mark.parametrize("dtype", HALVES)
def test_every_loss_in_half_precision(checkpoint: str, dtype: torch.dtype) -> None:
    """The student's outputs are halves; losses and gradients are float32, and near those of float32."""
    exact, exact_gradients = losses_and_gradients(checkpoint, range(4))
    with torch.autocast("cpu", dtype=dtype):
        mixed, gradients = losses_and_gradients(checkpoint, range(4))
    for name in (*TERMS, *LD):
        assert mixed[name].dtype == torch.float32, name
        assert float(mixed[name]) == pytest.approx(float(exact[name]), rel=VALUE), name
        assert {part.dtype for part in gradients[name].values()} == {torch.float32}, name
        found, wanted = (
            torch.cat([parts[key].flatten().double() for key in exact_gradients[name]])
            for parts in (gradients[name], exact_gradients[name])
        )
        assert torch.isfinite(found).all(), name
        assert torch.cosine_similarity(found, wanted, dim=0) > 1 - DIRECTION, name


@pytest.fixture
def float16_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine's `AmpOptimWrapper` as it is on a GPU, with torch's scaler and autocast for processors."""
    if digit_version(torch.__version__) < digit_version("2.3"):
        pytest.skip("torch has no GradScaler for processors")
    monkeypatch.setattr(amp_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_wrapper, "GradScaler", partial(torch.amp.GradScaler, "cpu"))
    monkeypatch.setattr(
        "mmengine.runner.amp.autocast", lambda dtype: torch.autocast("cpu", dtype=dtype or torch.float16)
    )


@pytest.mark.usefixtures("float16_on_cpu")
def test_every_loss_in_float16(checkpoint: str) -> None:
    """The values, and one gradient of their sum."""
    model = build(distilled(tiny_atss(), tiny_teacher(), checkpoint, distill=TERMS)).eval()
    exact = losses_of(model, batch((64, 64)))
    with torch.autocast("cpu", dtype=torch.float16):
        mixed = losses_of(model, batch((64, 64)))
    for name in TERMS:
        value, wanted = mixed[f"loss_kd_{name}"], float(exact[f"loss_kd_{name}"])
        assert value.dtype == torch.float32, name
        assert float(value) == pytest.approx(wanted, rel=VALUE), name
    model.parse_losses(mixed)[0].backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def scaled(model: Any, scale: float) -> Any:
    cfg = {
        "type": "AmpOptimWrapper",
        "loss_scale": {"init_scale": scale, "growth_interval": 1},
        "optimizer": {"type": "SGD", "lr": 1e-3},
    }
    return build_optim_wrapper(model, cfg)


@pytest.mark.usefixtures("float16_on_cpu")
def test_float16_with_a_scaled_loss(checkpoint: str) -> None:
    """`--amp` on a GPU: the update is that of float32, up to the halves."""
    terms = {"cls": {"type": "DistillationLoss"}, "neck": {"type": "FitNetsLoss", "align": "conv"}}
    cfg = distilled(tiny_atss(), tiny_teacher(), checkpoint, distill=terms)
    updates = []
    for half in (False, True):
        model = build(cfg)
        plain = build_optim_wrapper(model, {"optimizer": {"type": "SGD", "lr": 1e-3}})
        optim_wrapper = scaled(model, 256.0) if half else plain
        before = [weight.detach().clone() for weight in model.parameters()]
        seen: list[torch.dtype] = []
        model.neck.register_forward_hook(partial(lambda seen, *call: seen.append(call[-1][0].dtype), seen))
        logs = model.train_step(batch((64, 64)), optim_wrapper)
        assert seen == [torch.float16 if half else torch.float32]
        assert all(torch.isfinite(value) and value.dtype == torch.float32 for value in logs.values())
        updates.append(
            torch.cat([(new - old).flatten().double() for new, old in zip(model.parameters(), before)])
        )
    assert optim_wrapper.loss_scaler.get_scale() == 512
    assert torch.cosine_similarity(*updates, dim=0) > 0.99
    assert float(updates[1].norm()) == pytest.approx(float(updates[0].norm()), rel=0.05)


@pytest.mark.usefixtures("float16_on_cpu")
def test_a_step_whose_gradient_overflows_is_left_out(checkpoint: str) -> None:
    """The scale is halved, the weights stay, and nothing is reported as a broken loss."""
    model = build(distilled(tiny_atss(), tiny_teacher(), checkpoint))
    optim_wrapper = scaled(model, 2.0**120)
    before = copy.deepcopy(model.state_dict())
    logs = model.train_step(batch((64, 64)), optim_wrapper)
    assert all(torch.isfinite(value) for value in logs.values())
    assert optim_wrapper.loss_scaler.get_scale() == 2.0**119
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), name


@pytest.mark.usefixtures("float16_on_cpu")
@pytest.mark.parametrize("distributed", [False, True])
def test_a_step_whose_forward_pass_overflows_is_left_out(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, distributed: bool
) -> None:
    """As many in a row as are tolerated; training goes on after them, and stops after more."""
    model = build(distilled(tiny_atss(), tiny_teacher(), checkpoint))
    optim_wrapper = scaled(model, 256.0)
    whole = SimpleNamespace(module=model, detect_anomalous_params=False)
    whole._run_forward = lambda data, mode: model(**data, mode=mode)
    train_step = partial(MMDistributedDataParallel.train_step, whole) if distributed else model.train_step
    overflowing = iter([True] * TOLERATED + [False] + [True] * (TOLERATED + 1))
    forward = model.bbox_head.forward
    monkeypatch.setattr(
        model.bbox_head,
        "forward",
        lambda feats: forward([level * float("inf") for level in feats] if next(overflowing) else feats),
    )

    def step() -> bool:
        before = copy.deepcopy(dict(model.named_parameters()))
        train_step(batch((64, 64)), optim_wrapper)
        assert all(torch.isfinite(weight).all() for weight in model.parameters())
        return any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())

    learned = [step() for _ in range(2 * TOLERATED + 1)]
    assert learned == [False] * TOLERATED + [True] + [False] * TOLERATED
    with pytest.raises(UserError, match=f"in {TOLERATED + 1} consecutive steps"):
        step()


@pytest.mark.usefixtures("float16_on_cpu")
def test_statistics_of_a_step_that_is_left_out_are_put_back(checkpoint: str) -> None:
    """An overflow in the backbone, whose BatchNorm would keep it for ever."""
    model = build(distilled(tiny_atss(backbone__norm_eval=False), tiny_teacher(), checkpoint)).train()
    optim_wrapper = scaled(model, 256.0)
    model.train_step(batch((64, 64)), optim_wrapper)
    before = copy.deepcopy(model.state_dict())
    overflow = model.backbone.conv1.register_forward_hook(lambda *call: call[-1] * float("inf"))
    logs = model.train_step(batch((64, 64)), optim_wrapper)
    overflow.remove()
    assert not torch.isfinite(logs["loss"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) or name.endswith("num_batches_tracked"), name
    model.train_step(batch((64, 64)), optim_wrapper)
    assert not torch.equal(model.backbone.bn1.running_mean, before["backbone.bn1.running_mean"])
