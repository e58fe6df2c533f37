"""Run one real training step: losses, gradients, balance of the losses, and memory."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from mmkd.balance import measure_balance, recorded_calls, suggested_weight
from mmkd.doctor.findings import Finding, NotExamined, collect, shortened
from mmkd.doctor.first_iteration import first_iteration
from mmkd.doctor.memory import StepMemory, count_saved, largest_layer, of_parameters
from mmkd.doctor.setup import TrainingSetup
from mmkd.hooks.ema_teacher import ema_teacher
from mmkd.losses import AutoWeight
from mmkd.teachers import single_teachers

# If a term's gradient differs from the task's by more than this factor, they are out of balance.
_DROWN = 10.0


def examine_step(setup: TrainingSetup) -> Iterator[Finding]:
    """Build the model, initialise it, and run one step with its own optimizer.

    Stores its memory use in ``setup.step_memory`` for `examine_memory`.
    """
    model = setup.model()
    try:
        model.init_weights()
    except Exception as error:
        yield Finding.error(
            "initial weights",
            f"cannot load them: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "download them and set the file in init_cfg; this check continues with random weights",
        )
    model.to(setup.device).train()
    average = ema_teacher(model)
    if average is not None:  # as `EMATeacherHook` does before training
        average.begin(model.state_dict())
    batch = setup.batch()
    settings = setup.cfg.get("optim_wrapper")
    if not settings:
        raise NotExamined("the config has no optim_wrapper")
    wrapper = build_optim_wrapper(model, settings.copy())
    terms = getattr(model, "terms", {})
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    with ExitStack() as watching:
        yield from watching.enter_context(first_iteration(setup, model, wrapper, batch))
        data = model.data_preprocessor(batch, True)
        calls = watching.enter_context(recorded_calls(terms))
        tally = watching.enter_context(count_saved(model))
        teachers = [] if not hasattr(model, "teacher") else single_teachers(model.teacher)
        layers = [
            watching.enter_context(largest_layer(one.model)) for one in teachers if hasattr(one, "model")
        ]
        with wrapper.optim_context(model):
            losses = model.loss(data["inputs"], data["data_samples"])
    finite = yield from _finite(losses)
    if not finite:
        raise NotExamined("gradients of non-finite losses")
    total, _ = model.parse_losses(losses)
    if average is not None:
        yield Finding.ok("balance", "not checked: in the first step, the EMA teacher equals the student")
    elif calls:
        scale = getattr(getattr(wrapper, "loss_scaler", None), "get_scale", lambda: 1.0)()
        yield from collect("balance", _balance, losses, calls, terms, float(scale))
    wrapper.backward(total)
    yield from _gradients(model, frozen)
    wrapper.step()
    weights = [p for one in teachers if hasattr(one, "model") for p in one.model.parameters()]
    setup.step_memory = StepMemory(
        images=len(data["data_samples"]),
        pixels=data["inputs"].shape[-2] * data["inputs"].shape[-1],
        inputs=data["inputs"].nbytes,
        parameters=of_parameters(model.parameters()),
        gradients=sum(p.grad.nbytes for p in model.parameters() if p.grad is not None),
        optimizer=_optimizer_state(wrapper.optimizer),
        activations=tally.bytes,
        teacher=of_parameters(weights),
        teacher_layers=max((layer.bytes for layer in layers), default=0),
    )


def _finite(losses: Mapping[str, Any]) -> Generator[Finding, None, bool]:
    values: dict[str, float] = {}
    for name, value in losses.items():
        if "loss" in name:
            parts = [value] if isinstance(value, Tensor) else list(value)
            values[name] = float(sum(part.detach().float().mean() for part in parts))
    text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    bad = [name for name, value in values.items() if not abs(value) < float("inf")]
    if bad:
        yield Finding.error(
            "losses",
            f"not finite: {shortened(bad)} ({text})",
            "check the pixels and boxes above, then the term's options and weight",
        )
    else:
        yield Finding.ok("losses", text)
    return not bad


def _gradients(model: Any, frozen: int) -> Iterator[Finding]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    without = [name for name, p in trained.items() if p.grad is None]
    broken = [n for n, p in trained.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    if broken:
        yield Finding.error("gradients", f"not finite: {shortened(broken, 4)}", "clip or lower the losses")
    if without:
        yield Finding.warning(
            "gradients",
            f"{len(without)} of {len(trained)} trainable parameters get no gradient: {shortened(without, 4)}",
            "freeze them or check the losses; multi-GPU training needs find_unused_parameters=True",
        )
    if not (broken or without):
        held = f"; {frozen / 1e6:.2f} M weights are frozen" if frozen else ""
        yield Finding.ok("gradients", f"all {len(trained)} trainable parameters get a gradient{held}")


def _balance(
    losses: Mapping[str, Any], calls: Any, terms: Mapping[str, Any], scale: float
) -> Iterator[Finding]:
    balance = measure_balance(losses, calls, list(terms), scale)
    if balance is None:
        raise NotExamined("no layer before the head is trained")
    for name, ratio in balance.ratios.items():
        what, weight = f"distill.{name}", float(terms[name].loss_weight)
        suggested, _ = suggested_weight(weight, ratio)
        cosine = f", cosine {balance.cosines[name]:.2f}" if name in balance.cosines else ""
        text = f"gradient on the neck is {ratio:.3g} × the task's{cosine}"
        if terms[name].auto is not None:
            yield _automatic(what, terms[name].auto, text)
            continue
        advice = f"loss_weight={suggested:.3g} instead of {weight:.3g} would balance them at this step"
        if 1 / _DROWN <= ratio <= _DROWN:
            yield Finding.ok(what, f"{text}; {advice}")
        else:
            verdict = "it dominates the task loss" if ratio > 1 else "its contribution is negligible"
            yield Finding.warning(what, f"{text}: {verdict}", advice)
    if balance.agreement is not None:
        text = f"student and teacher predict the same class for {balance.agreement:.0%} of the priors"
        yield Finding.ok("agreement", f"{text} where the teacher is confident, before training")


def _automatic(what: str, auto: AutoWeight, text: str) -> Finding:
    if auto.measured:
        return Finding.ok(what, f"{text}; its automatic weight starts at {auto.weight:.3g}")
    return Finding.warning(
        what,
        f"{text}, so its automatic weight is 0 in this step",
        "ignore this if the batch has no objects; otherwise check the loss's region and options",
    )


def _optimizer_state(optimizer: Any) -> int:
    optimizers = optimizer.values() if isinstance(optimizer, dict) else [optimizer]
    states = [state for one in optimizers for state in one.state.values()]
    return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))
