"""Valid configs of distillation, small enough to train in half a second, and random damages to them."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..conftest import ROOT, save_teacher, tiny_atss

Path_ = tuple[str | int, ...]
# Below these the options are mmkd's own; what stands below a `config` is mmdet's again.
OWN = (
    ("model", "teacher"),
    ("model", "distill"),
    ("model", "inherit"),
    ("model", "task_loss_weight"),
    ("custom_hooks",),
)
THEIRS = (
    ("model", "bbox_head"),
    ("model", "neck"),
    ("model", "backbone"),
    ("model", "data_preprocessor"),
    ("train_dataloader",),
    ("optim_wrapper",),
    ("param_scheduler",),
    ("train_cfg",),
)
# So many epochs are what was asked for; so many workers, or layers one by one, take all memory.
NEVER_HUGE = ("max_epochs", "num_workers", "num_outs", "stacked_convs")


@dataclass(frozen=True)
class Damage:
    """One change of a config; what a failing test prints."""

    base: str
    kind: str
    path: Path_
    found: Any
    became: Any

    @property
    def own(self) -> bool:
        """Whether it is in mmkd's own options; which hooks there are is mmengine's affair."""
        return is_own(self.path) and not (self.path[0] == "custom_hooks" and self.path[-1] == "type")

    @property
    def cannot_run(self) -> bool:
        """Whether mmkd has to refuse it."""
        if not self.own or self.path == ("custom_hooks",):  # which mmengine does not know under another name
            return False
        parent = self.path[-2] if len(self.path) > 1 else None
        if self.kind in ("rename", "wrong"):
            # Names of losses and folders are free, and a class_map may have more than a data set.
            return parent not in ("distill", "losses", "class_map") and self.path[-1] != "dir"
        number = isinstance(self.found, (int, float)) and not isinstance(self.found, bool)
        return self.kind in ("negative", "nan") or (
            number and self.kind == "retype" and self.became is not None
        )

    @property
    def names(self) -> set[str]:
        """What the message has to name: one of the keys on its way, or what a key became."""
        return {str(key) for key in (*self.path, self.became) if isinstance(key, str)} | {str(self.became)}


def is_own(path: Path_) -> bool:
    """Whether an option is mmkd's own."""
    return any(path[: len(root)] == root for root in OWN) and "config" not in path[:-1]


def bases(folder: Path) -> dict[str, dict[str, Any]]:
    """Valid configs by name, which between them have every loss and most options.

    Args:
        folder: the teachers' configs and checkpoints are written here.
    """
    atss, gfl = _teacher(), _gfl(_teacher())
    trained = [{"classes": ("Platelets", "RBC", "WBC")}]
    taught = save_teacher(folder / "teacher.pth", atss, dataset_meta=trained[0])
    gfl_taught = save_teacher(folder / "gfl.pth", gfl)
    file = folder / "teacher.py"
    file.write_text(text_of({"model": atss.to_dict()}))
    one = {
        "teacher": {
            "config": str(file),
            "checkpoint": taught,
            "precision": "fp32",
            "compile": False,
            "own_stream": False,
            "every": 2,
            "class_map": {"RBC": "RBC"},
            "cache": {"dir": str(folder / "cache"), "max_gb": 1, "dtype": "fp16", "top": 50},
        },
        "distill": {
            "cls": {
                "type": "DistillationLoss",
                "temperature": 2.0,
                "loss_weight": 0.5,
                "activation": "sigmoid",
                "region": "teacher",
                "normalizer": "region",
                "reduction": "batchmean",
                "standardize": False,
            },
            "box": {"type": "BoxIoULoss", "region": "teacher", "overlap": "giou", "min_score": 0.1},
            "quality": {"type": "QualityLoss", "name": "centerness", "region": "foreground"},
            "dist": {"type": "DISTLoss", "beta": 1.0, "gamma": 1.0, "temperature": 1.0, "region": "all"},
            "dkd": {"type": "DKDLoss", "alpha": 1.0, "beta": 0.25, "temperature": 1.0},
            "bckd": {"type": "BCKDLoss", "beta": 1.0, "loss_weight": 1.0},
        },
        "inherit": ["neck"],
        "task_loss_weight": 0.5,
    }
    several = {
        "teacher": {
            "big": {"config": {"model": atss.to_dict()}, "checkpoint": taught, "precision": "fp32"},
            "own": {"ema": {"momentum": 0.01}},
            "pair": [
                {"config": str(file), "checkpoint": taught, "levels": [0, 1, 2, 3, 4]},
                {"config": str(file), "checkpoint": None},
            ],
        },
        "distill": {
            "cross": {
                "type": "CrossKDLoss",
                "teacher": "big",
                "layer": 1,
                "align": True,
                "losses": {"cls": {"type": "BCKDLoss", "loss_weight": 1.0}},
            },
            "fgd": {"type": "FGDLoss", "teacher": "big", "temperature": 0.5, "alpha": 1e-3, "lambd": 5e-6},
            "pgd": {"type": "PGDLoss", "teacher": "big", "topk": 9, "xi": 0.8, "delta": 8e-4},
            "mgd": {"type": "MGDLoss", "teacher": "own", "mask_ratio": 0.5, "levels": [0, 1]},
            "cwd": {"type": "CWDLoss", "teacher": "pair", "temperature": 1.0, "align": "auto"},
            "pkd": {"type": "PKDLoss", "teacher": "pair", "levels": [0, 1], "statistics": "image"},
            "cosine": {"type": "CosineLoss", "teacher": "pair", "align": "pool", "vector": "map"},
            "hints": {"type": "FitNetsLoss", "teacher": "pair", "align": "conv", "loss_weight": 0.1},
        },
        "inherit": [],
        "task_loss_weight": 1,
    }
    distributions = {
        "teacher": {"config": gfl.to_dict(), "checkpoint": gfl_taught, "precision": "bf16"},
        "distill": {
            "ld": {
                "type": "LocalizationDistillationLoss",
                "temperature": 10.0,
                "region": ["main", "vlr"],
                "main_weight": 1.0,
                "vlr_weight": 0.25,
                "normalizer": "region",
                "alpha": 0.25,
                "vlr_nearness": "iof",
                "anchor_scale": 8.0,
            }
        },
    }
    schedule = {"type": "DistillScheduleHook", "term": "cls", "kind": "cosine", "warmup": 1}
    hooks = {
        "one": [
            {**schedule, "start": 1.0, "end": 0.1, "stop_epoch": 1},
            {"type": "DistillMonitorHook", "interval": 1, "drown": 10.0},
            {"type": "MetricsFileHook"},
        ],
        "several": [{"type": "TrainOnlyHook", "modules": ["neck", "bbox_head"]}, {"type": "EMATeacherHook"}],
        "distributions": [{**schedule, "term": None, "kind": "linear", "warmup": 0.5}],
    }
    student = tiny_atss()
    models = {
        "one": {**student.to_dict(), **one},
        "several": {**student.to_dict(), **several},
        "distributions": {**_gfl(student).to_dict(), **distributions},
    }
    return {
        name: {
            **_training(),
            "model": {**model, "type": "KDSingleStageDetector"},
            "custom_hooks": hooks[name],
        }
        for name, model in models.items()
    }


def _teacher() -> Any:
    return tiny_atss(backbone__base_channels=4, neck__in_channels=[4, 8, 16, 32])


def _gfl(atss: Any) -> Any:
    """The same detector with a head of distributions."""
    model = copy.deepcopy(atss)
    model.type = "GFL"
    model.bbox_head = dict(model.bbox_head)
    for key in ("bbox_coder", "loss_centerness", "loss_cls"):  # an update would merge them
        del model.bbox_head[key]
    model.bbox_head.update(
        type="GFLHead",
        reg_max=8,
        loss_cls={"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
        loss_dfl={"type": "DistributionFocalLoss", "loss_weight": 0.25},
    )
    return model


def _training() -> dict[str, Any]:
    """Two iterations of two small images."""
    cfg = Config.fromfile(ROOT / "configs/bccd/student.py").to_dict()
    for part in ("val", "test"):
        for what in ("dataloader", "evaluator", "cfg"):
            cfg[f"{part}_{what}"] = None
    loader = cfg["train_dataloader"]
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    loader["dataset"]["indices"] = 4
    loader["dataset"]["pipeline"][2]["scale"] = (96, 64)
    cfg["train_cfg"] = {"type": "EpochBasedTrainLoop", "max_epochs": 1}
    cfg["param_scheduler"] = [
        {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": 2},
        {"type": "CosineAnnealingLR", "by_epoch": True, "begin": 0, "end": 1, "T_max": 1},
    ]
    cfg["optim_wrapper"]["clip_grad"] = {"max_norm": 35, "norm_type": 2}
    cfg["custom_imports"] = {"imports": ["mmkd"]}
    return cfg


def damages(configs: dict[str, dict[str, Any]], seed: int) -> Iterator[tuple[Damage, dict[str, Any]]]:
    """Endless random damages, each with the damaged config. Three of five are in mmkd's own options."""
    chance = random.Random(seed)
    while True:
        base = chance.choice(sorted(configs))
        cfg = copy.deepcopy(configs[base])
        own = chance.random() < 0.6
        paths = [path for path in _paths(cfg) if _among(path, own)]
        path = chance.choice(paths)
        parent, found = _at(cfg, path[:-1]), _at(cfg, path)
        kind, became = chance.choice(_ways(path[-1], found, chance))
        if kind in ("drop", "rename"):
            del parent[path[-1]]
        if kind == "rename":
            parent[became] = found
        elif kind != "drop":
            parent[path[-1]] = became
        yield Damage(base, kind, path, found, became), cfg


def _among(path: Path_, own: bool) -> bool:
    if own:
        return is_own(path)
    below = any(path[: len(root)] == root for root in THEIRS) or "config" in path[:-1]
    return below and not is_own(path)


def _paths(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    if path:
        yield path
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in places:
        yield from _paths(inner, (*path, key))


def _at(value: Any, path: Path_) -> Any:
    for key in path:
        value = value[key]
    return value


def _ways(key: str | int, found: Any, chance: random.Random) -> list[tuple[str, Any]]:
    """What may befall a value, by kind."""
    ways: list[tuple[str, Any]] = [("retype", None)]
    if isinstance(key, str):
        place = chance.randrange(len(key))
        ways += [("drop", None), ("rename", key[:place] + key[place:][:1] * 2 + key[place + 1 :])]
    if isinstance(found, bool):
        ways += [("retype", "yes"), ("retype", [found])]
    elif isinstance(found, (int, float)):
        whole = isinstance(found, int)
        ways += [("retype", str(found)), ("retype", [found]), ("retype", {"value": found})]
        ways += [("negative", -abs(found) - 1), ("zero", 0), ("nan", math.nan)]
        if key not in NEVER_HUGE:
            ways += [("huge", 10**9 if whole else 1e30)]
    elif isinstance(found, str):
        ways += [
            ("wrong", f"no_such_{found}"),
            ("retype", 7),
            ("retype", {"type": found}),
            ("retype", [found]),
        ]
    elif isinstance(found, dict):
        ways += [("retype", list(found.values())), ("retype", str(sorted(found))), ("retype", 3.5)]
    elif isinstance(found, (list, tuple)):
        ways += [("retype", found[0] if found else 0), ("retype", dict(enumerate(found))), ("retype", "a,b")]
    return ways


def text_of(cfg: dict[str, Any]) -> str:
    """A config file."""
    return "\n".join(f"{key} = {_literal(value)}" for key, value in cfg.items()) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return f"float({str(value)!r})" if isinstance(value, float) and not math.isfinite(value) else repr(value)
