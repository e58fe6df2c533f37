"""A training by other means than the plain Runner's: the same numbers, or one clear refusal."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import MMFullyShardedDataParallel
from mmengine.registry import MODEL_WRAPPERS, init_default_scope
from mmengine.runner import FlexibleRunner
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmengine.utils import digit_version
from torch import nn

from mmkd.errors import UserError
from mmkd.hooks import DistillStateHook
from mmkd.sharding import check_strategy, check_whole, unwrapped

from .conftest import batch, build, distilled, losses_of, repeats, save_teacher, tiny_atss, tiny_teacher
from .distributed import TERMS
from .hooks.kd_runner import kd_model, kd_runner, logged

FEATURES = {"cls": {"type": "DistillationLoss"}, "neck": {"type": "FitNetsLoss", "align": "conv"}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    init_default_scope("mmdet")
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pth", tiny_teacher())


def losses_and_gradients(model: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    total, logs = model.parse_losses(losses_of(model, batch()))
    total.backward()
    return (
        {name: float(value) for name, value in logs.items()},
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
    )


# Those of mmdet's own, and of mmengine's Runner by name.
@pytest.mark.parametrize(
    "layers", ["with_cp", ["backbone.layer1", "backbone.layer3"], ["bbox_head.cls_convs.0"]]
)
def test_activation_checkpointing(checkpoint: str, layers: str | list[str]) -> None:
    """Run twice, seen once: the same losses and gradients bit for bit, of all losses and random masks."""
    terms = {**TERMS, "masked": {"type": "MGDLoss", "loss_weight": 2e-5}}
    cfg = distilled(tiny_atss(), tiny_teacher(), checkpoint, distill=terms)
    losses, gradients = losses_and_gradients(build(cfg))
    cfg.backbone.with_cp = layers == "with_cp"
    model = build(cfg)
    if layers != "with_cp":
        turn_on_activation_checkpointing(model, layers)
    again, gradients_again = losses_and_gradients(model)
    assert again == losses
    assert gradients_again.keys() == gradients.keys()
    assert all(torch.equal(gradients_again[name], gradients[name]) for name in gradients)


def test_automatic_weights_are_not_measured_through_a_checkpointed_head(checkpoint: str) -> None:
    terms = {"cls": {"type": "DistillationLoss", "loss_weight": "auto"}}
    model = build(distilled(tiny_atss(), tiny_teacher(), checkpoint, distill=terms))
    turn_on_activation_checkpointing(model, ["backbone.layer1"])
    assert losses_of(model, batch())["loss_kd_cls"] > 0
    turn_on_activation_checkpointing(model, ["bbox_head.cls_convs.0"])
    model.terms["cls"].auto.done = 0
    with pytest.raises(UserError, match=r"(?s)through activation checkpointing.*a number as loss_weight"):
        losses_of(model, batch())


@pytest.mark.parametrize(
    ("layers", "frozen", "named"),
    [
        ("backbone", -1, "backbone"),
        ("neck", -1, "neck"),
        ("bbox_head", -1, "bbox_head"),
        ("backbone.layer2", 1, "backbone.layer2"),
    ],
)
def test_checkpointing_that_would_not_train_is_refused(layers: str, frozen: int, named: str) -> None:
    """As stock mmengine leaves these layers without a gradient, and no more than warns."""
    model = build(distilled(tiny_atss(backbone__frozen_stages=frozen), tiny_teacher()))
    turn_on_activation_checkpointing(model, layers)
    with pytest.raises(UserError, match=f"{named} would not be trained"):
        losses_of(model, batch())
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        losses_of(model, batch())


def test_frozen_layers_may_be_checkpointed(checkpoint: str) -> None:
    model = build(distilled(tiny_atss(backbone__frozen_stages=1), tiny_teacher(), checkpoint))
    turn_on_activation_checkpointing(model, ["backbone.layer1", "backbone.layer3"])
    _, gradients = losses_and_gradients(model)
    assert any(name.startswith("backbone.layer3") for name in gradients)


@pytest.mark.soak
@pytest.mark.skipif(not repeats(0, 1), reason="minutes: in make soak alone")
def test_compiled_by_the_runner(checkpoint: str, tmp_path: Path) -> None:
    """``compile=…`` of mmengine's Runner takes the whole step, with teacher, losses and hooks."""
    weights, losses = {}, {}
    for name, cfg in (("plain", {}), ("compiled", {"compile": {"backend": "aot_eager"}})):
        folder = tmp_path / name
        folder.mkdir()
        runner = kd_runner(folder, kd_model(checkpoint, distill=FEATURES), epochs=1, cfg=cfg)
        runner.train()
        weights[name] = runner.model.state_dict()
        losses[name] = [{key: row[key] for key in row if "loss" in key} for row in logged(folder)]
    torch._dynamo.reset()
    assert len(losses["plain"]) == 3
    for found, wanted in zip(losses["compiled"], losses["plain"], strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(weights["compiled"], weights["plain"], rtol=1e-5, atol=1e-6)


def breaks_and_graphs(model: Any) -> list[tuple[int, int]]:
    """How often `torch.compile` leaves the graph, and how many it compiles, in each of three steps."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    compiled, found = torch.compile(model.forward, backend="eager"), []
    for _ in range(3):
        data = model.data_preprocessor(copy.deepcopy(batch((64, 64))), True)
        compiled(data["inputs"], data["data_samples"], mode="loss")
        found.append((sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]))
    torch._dynamo.reset()
    return found


@pytest.mark.slow
@pytest.mark.skipif(digit_version(torch.__version__) < digit_version("2.6"), reason="not measured there")
def test_compiles_as_the_student_alone(checkpoint: str) -> None:
    """Teacher, terms and hooks break no graph of the student's, and have nothing compiled again."""
    terms = {
        name: TERMS[name] for name in ("all_batch", "foreground_batch", "box", "crossed", "fitnets_conv")
    }
    alone = breaks_and_graphs(build(tiny_atss()))
    found = breaks_and_graphs(build(distilled(tiny_atss(), tiny_teacher(), checkpoint, distill=terms)))
    assert alone[0] == alone[-1]
    assert alone[0][1] > 5, "it was traced"
    assert found == alone


def test_a_compiled_network(checkpoint: str) -> None:
    """Backbone and neck by ``torch.compile``, as one does by hand."""
    model, twin = (build(distilled(tiny_atss(), tiny_teacher(), checkpoint)) for _ in range(2))
    twin.extract_feat = torch.compile(twin.extract_feat, backend="eager")
    losses, gradients = losses_and_gradients(model)
    again, gradients_again = losses_and_gradients(twin)
    torch._dynamo.reset()
    assert again == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(gradients_again, gradients, rtol=1e-4, atol=1e-5)


def test_flexible_runner_is_the_runner_bit_for_bit(checkpoint: str, tmp_path: Path) -> None:
    """`FlexibleRunner` with its strategy for one device, checkpoints and a resumed second epoch included."""
    plain, flexible = (tmp_path / name for name in ("plain", "flexible"))
    plain.mkdir()
    runner = kd_runner(plain, kd_model(checkpoint, distill=FEATURES), epochs=2)
    loader = copy.deepcopy(runner._train_dataloader)
    runner.train()
    for epochs, resume in ((1, False), (2, True)):
        for kept_between_runs in (MessageHub, MMLogger):
            kept_between_runs._instance_dict.clear()
        other = FlexibleRunner(
            model=kd_model(checkpoint, distill=FEATURES),
            work_dir=str(flexible),
            strategy={"type": "SingleDeviceStrategy"},
            train_dataloader=copy.deepcopy(loader),
            train_cfg={"by_epoch": True, "max_epochs": epochs},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9}},
            custom_hooks=[DistillStateHook()],
            resume=resume,
            default_scope="mmdet",
            randomness={"seed": 0},
            experiment_name=f"flexible_{epochs}",
            log_level="WARNING",
        )
        other.train()
    wanted = runner.model.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in other.model.state_dict().items())
    own = dict(runner.model.distill.named_parameters())
    assert all(torch.equal(value, own[key]) for key, value in other.model.distill.named_parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": {"type": "FSDPStrategy"}},
        {"strategy": "DeepSpeedStrategy"},
        {"strategy": {"type": "ColossalAIStrategy"}},
        {"model_wrapper_cfg": {"type": "MMFullyShardedDataParallel"}},
    ],
)
def test_shards_are_refused_by_config(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Sharded training"):
        check_strategy(ConfigDict(model={"distill": {"cls": {}}}, **options))
    check_strategy(ConfigDict(model={}, **options))


def test_whole_models_are_not_refused() -> None:
    model = {"distill": {"cls": {}}}
    for options in (
        {},
        {"strategy": {"type": "DDPStrategy"}},
        {"strategy": "SingleDeviceStrategy"},
        {"model_wrapper_cfg": {"type": "MMDistributedDataParallel"}},
    ):
        check_strategy(ConfigDict(model=model, **options))


def test_shards_are_refused_before_the_first_step(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the model itself, and by the hook that writes its losses' layers."""
    model = kd_model(checkpoint, distill=FEATURES)

    @MODEL_WRAPPERS.register_module()
    class Sharded(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    try:
        with pytest.raises(UserError, match="found: +Sharded"):
            unwrapped(Sharded(model))
        runner = kd_runner(tmp_path, model)
        runner.model = Sharded(model)
        with pytest.raises(UserError, match="Sharded training"):
            DistillStateHook().before_train(runner)
        assert isinstance(unwrapped(Sharded(nn.Linear(1, 1))), nn.Linear)
    finally:
        MODEL_WRAPPERS.module_dict.pop("Sharded")


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version("2.2") and not torch.cuda.is_available(),
    reason="this torch's FSDP runs on GPUs alone",
)
def test_fully_sharded_data_parallel_is_refused(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first forward pass of the real thing, alone in its group."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = kd_model(checkpoint, distill=FEATURES)
        for scale in model.bbox_head.scales:  # torch's FSDP takes no numbers without a dimension
            scale.scale = nn.Parameter(scale.scale.detach().reshape(1))
        wrapped = MMFullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
        data = model.data_preprocessor(batch(), True)
        with pytest.raises(UserError, match="found: +FullyShardedDataParallel"):
            wrapped(**data, mode="loss")
    finally:
        torch.distributed.destroy_process_group()


def test_parameters_in_shards(checkpoint: str) -> None:
    """Those of DeepSpeed's third stage, which carry its mark."""
    model = kd_model(checkpoint)
    check_whole(model)
    next(model.parameters()).ds_id = 0
    with pytest.raises(UserError, match="Sharded training"):
        losses_of(model, batch())
