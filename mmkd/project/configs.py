"""The text of a project's configs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmkd.compat import load_config
from mmkd.project.code import Code, code, comment
from mmkd.project.dataset import DataSet
from mmkd.project.fit import Fit, Setting
from mmkd.project.overrides import class_overrides, merged

# For AdamW from scratch on small data: learning rate and batch size of configs/bccd and configs/cards.
_ADAMW = (1e-3, 8)
_WARM_UP = 500


@dataclass(frozen=True)
class Part:
    """Where a teacher or student comes from.

    Attributes:
        about: description in words.
        base: bases of its config; ``None`` to inherit the teacher's config.
        model: overrides of the model.
        stock: the loaded config behind ``base`` if it is complete; ``None`` for mmkd's own model bases.
        weights: checkpoint to start from; ``""`` for none.
    """

    about: str
    base: tuple[str, ...] | None
    model: Mapping[str, Any]
    stock: Any = None
    weights: str = ""


def compact_teacher() -> Part:
    """The narrow ATSS that the BCCD and cards recipes use."""
    return Part("a narrow ATSS-R18, trained from scratch", ("mmkd::_base_/models/atss_r18_narrow.py",), {})


def compact_student() -> Part:
    """The compact teacher with half the backbone width."""
    model = {"backbone": {"base_channels": 16}, "neck": {"in_channels": [16, 32, 64, 128]}}
    return Part("the teacher's architecture with half the backbone width", None, model)


def smaller_backbone(base: tuple[str, ...] | None, stock: Any) -> Part:
    """The stock ATSS with a ResNet-18."""
    backbone = {"depth": 18, "init_cfg": {"checkpoint": "torchvision://resnet18"}}
    model = {"backbone": backbone, "neck": {"in_channels": [64, 128, 256, 512]}}
    return Part("ATSS-R18 with an ImageNet backbone", base, model, stock)


def teacher_text(part: Part, data: DataSet, fit: Fit, project: Path) -> str:
    """``teacher.py``."""
    return _whole(
        f"The teacher: {part.about}.", part, data, fit, fit.teacher_epochs, project / "work_dirs/teacher"
    )


def student_text(part: Part, data: DataSet, fit: Fit, project: Path) -> str:
    """``student.py``: inherits from the teacher's config, unless it has its own base."""
    about, work_dir = f"The student alone: {part.about}.", project / "work_dirs/student"
    if part.base is not None:
        return _whole(about, part, data, fit, fit.student_epochs, work_dir)
    load = "load_from = None\n" if part.stock is not None else ""
    return "\n".join(
        [
            f"# {about}",
            '_base_ = ["./teacher.py"]',
            "",
            f"model = {code(part.model)}",
            load + _schedule(fit.student_epochs, data, fit, stock=False),
            f'work_dir = "{work_dir.as_posix()}"',
            "",
        ]
    )


def kd_text(kind: str, recipe: Mapping[str, Any], fit: Fit, project: Path) -> str:
    """``kd.py``: the student with a teacher and losses that fit both."""
    checkpoint = project / f"work_dirs/teacher/epoch_{fit.teacher_epochs.value}.pth"
    entry = {"config": (project / "teacher.py").as_posix(), "checkpoint": checkpoint.as_posix()}
    entry.update(recipe.get("teacher", {}))
    model = {"type": "KDDetector", "student": kind, "teacher": entry}
    model |= {key: recipe[key] for key in ("inherit", "distill") if key in recipe}
    return "\n".join(
        [
            "# The distilled student, with the losses that fit this pair. Same data, seed and schedule.",
            '_base_ = ["./student.py"]',
            "",
            f"model = {code(model)}",
            f'work_dir = "{(project / "work_dirs/kd").as_posix()}"',
            "",
        ]
    )


def learning_rate(stock: Any, batch: int) -> Setting:
    """The learning rate for a batch size: scaled linearly for SGD, by the square root for Adam variants."""
    rate, at, kind = *_ADAMW, "AdamW"
    if stock is not None:
        optimizer = (stock.get("optim_wrapper") or {}).get("optimizer") or {}
        rate, kind = optimizer.get("lr", 0.01), str(optimizer.get("type", "SGD"))
        at = (stock.get("auto_scale_lr") or {}).get("base_batch_size", 16)
    ratio = batch / at
    scaled = rate * (ratio**0.5 if "adam" in kind.lower() else ratio)
    why = f"{rate:g} is for batch size {at}"
    return Setting(float(f"{scaled:.2g}"), why if ratio != 1 else f"{kind}'s for batch size {at}")


def _whole(about: str, part: Part, data: DataSet, fit: Fit, epochs: Setting, work_dir: Path) -> str:
    assert part.base is not None
    base = [*part.base]
    if part.stock is None:
        base += ["mmkd::_base_/schedules/adamw_20e.py", "mmdet::_base_/default_runtime.py"]
    names = class_overrides(_model_of(part), len(data.classes))
    model = merged(names, part.model)
    scaled = _anchors(_model_of(part), fit)
    lines = [
        f"# {about}",
        f"_base_ = {code(base)}",
        'custom_imports = dict(imports=["mmkd"])',
        "",
        *_data(data, fit, part.stock),
        "",
        *(comment(f"Anchors: {fit.anchor_scale.why}.") if scaled else []),
        f"model = {code(merged(model, scaled))}",
    ]
    if part.stock is not None:
        if "batch_augments" in (part.stock.model.get("data_preprocessor") or {}):
            lines.insert(-1, "# No resizing in the preprocessor: the pipeline does it.")
            lines[-1] = (
                f"model = {code(merged(model, {'data_preprocessor': {'batch_augments': None}}, scaled))}"
            )
        lines.append(f"load_from = {code(part.weights or None)}")
    rate = learning_rate(part.stock, fit.batch.value)
    logged = min(10, max(1, data.splits["train"].image_count // fit.batch.value))
    lines += [
        *comment(f"Learning rate: {rate.why}."),
        f"optim_wrapper = {code({'optimizer': {'lr': rate.value}})}",
        _schedule(epochs, data, fit, part.stock is not None),
        "default_hooks = dict(",
        f"    logger=dict(interval={logged}),",
        '    checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=1, save_best="coco/bbox_mAP"),',
        ")",
        'custom_hooks = [dict(type="MetricsFileHook")]',
        f'work_dir = "{work_dir.as_posix()}"',
        "",
    ]
    return "\n".join(lines)


def _data(data: DataSet, fit: Fit, stock: Any) -> Iterator[str]:
    train, val, test = data.splits["train"], data.splits["val"], data.test
    side = fit.side.value
    masks = stock is not None and _reads_masks(stock)
    annotations = {"type": "LoadAnnotations", "with_bbox": True} | ({"with_mask": True} if masks else {})
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    yield f"classes = {code(data.classes)}"
    yield from comment(f"Longest side: {fit.side.why}.")
    yield f"image_scale = {code((side, side))}"
    yield "train_pipeline = " + code(
        [
            {"type": "LoadImageFromFile"},
            annotations,
            {
                "type": "RandomResize",
                "scale": Code("image_scale"),
                "ratio_range": (0.8, 1.25),
                "keep_ratio": True,
            },
            {"type": "RandomFlip", "prob": 0.5},
            {"type": "PackDetInputs"},
        ]
    )
    yield "test_pipeline = " + code(
        [
            {"type": "LoadImageFromFile"},
            {"type": "Resize", "scale": Code("image_scale"), "keep_ratio": True},
            annotations,
            {"type": "PackDetInputs", "meta_keys": keys},
        ]
    )
    yield from comment(f"Batch: {fit.batch.why}.")
    for split, name in ((train, "train"), (val, "val"), (test, "test")):
        if name == "test" and test is val:
            yield "test_dataloader = val_dataloader"
            continue
        dataset: dict[str, Any] = {
            "type": "CocoDataset",
            "metainfo": {"classes": Code("classes")},
            "ann_file": split.annotations.as_posix(),
            "data_prefix": {"img": f"{split.images.as_posix()}/"},
        }
        # No filter: images without objects teach the background.
        dataset |= {} if name == "train" else {"test_mode": True}
        dataset["pipeline"] = Code("train_pipeline" if name == "train" else "test_pipeline")
        loader: dict[str, Any] = {"_delete_": True} if stock is not None else {}
        loader |= {
            "batch_size": fit.batch.value,
            "num_workers": fit.workers,
            "persistent_workers": True,
            "sampler": {"type": "DefaultSampler", "shuffle": name == "train"},
            "dataset": dataset,
        }
        yield f"{name}_dataloader = {code(loader)}"
    for split, name in ((val, "val"), (test, "test")):
        if name == "test" and test is val:
            yield "test_evaluator = val_evaluator"
            continue
        evaluator: dict[str, Any] = {"_delete_": True} if stock is not None else {}
        evaluator |= {"type": "CocoMetric", "ann_file": split.annotations.as_posix(), "metric": "bbox"}
        yield f"{name}_evaluator = {code(evaluator)}"


def _schedule(epochs: Setting, data: DataSet, fit: Fit, stock: bool) -> str:
    steps = max(1, data.splits["train"].image_count // fit.batch.value)
    warm_up = min(_WARM_UP, max(1, epochs.value * steps // 10))
    loop: dict[str, Any] = {"_delete_": True, "type": "EpochBasedTrainLoop"} if stock else {}
    loop |= {"max_epochs": Code("max_epochs"), "val_interval": max(1, epochs.value // 10)}
    return "\n".join(
        [
            *comment(f"Schedule: {epochs.why}."),
            f"max_epochs = {epochs.value}",
            f"train_cfg = {code(loop)}",
            "param_scheduler = [",
            f'    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end={warm_up}),',
            "    dict(",
            '        type="CosineAnnealingLR",',
            "        by_epoch=True,",
            "        begin=0,",
            "        end=max_epochs,",
            "        T_max=max_epochs,",
            "        convert_to_iter_based=True,",
            "    ),",
            "]",
        ]
    )


def _model_of(part: Part) -> Any:
    if part.stock is not None:
        return part.stock.model
    assert part.base is not None
    return load_config(part.base[0]).model


def _anchors(model: Any, fit: Fit) -> dict[str, Any]:
    """An override if a dense head's smallest anchors are too large for the data."""
    head = model.get("bbox_head")
    generator = head.get("anchor_generator") if isinstance(head, Mapping) else None
    given = None if generator is None else generator.get("octave_base_scale")
    if given is None or given <= fit.anchor_scale.value:
        return {}
    return {"bbox_head": {"anchor_generator": {"octave_base_scale": fit.anchor_scale.value}}}


def _reads_masks(stock: Any) -> bool:
    text = json.dumps(stock.get("train_pipeline") or [], default=str)
    return '"with_mask": true' in text
