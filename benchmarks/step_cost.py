"""What a training step costs with a teacher, as a ratio to the student's alone in the same run.

    python benchmarks/step_cost.py

The variants take turns, step by step, so that whatever else the machine does meets all of them; each figure
is the median over the rounds. Weights are random: they do not change the cost.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmdet.models.losses import KnowledgeDistillationKLDivLoss
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.structures import InstanceData

import mmkd
from mmkd.compat import load_config
from mmkd.registry import MODELS

Step = Callable[[], Any]


def parse_args() -> argparse.Namespace:
    """Options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", default="mmdet::atss/atss_r50_fpn_1x_coco.py")
    parser.add_argument("--teacher", default="mmdet::atss/atss_r101_fpn_1x_coco.py")
    parser.add_argument("--size", type=int, default=320, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/benchmarks/step_cost.json"))
    return parser.parse_args()


def batch_of(args: argparse.Namespace, num_classes: int) -> dict[str, Any]:
    """Random images with five boxes each, preprocessed."""
    torch.manual_seed(0)
    samples = []
    for index in range(args.batch):
        shape = (args.size, args.size)
        meta = {"img_id": index, "img_shape": shape, "ori_shape": shape, "pad_shape": shape}
        sample = DetDataSample(metainfo={**meta, "batch_input_shape": shape})
        corner = torch.rand(5, 2) * args.size * 0.5
        boxes = torch.cat([corner, corner + torch.rand(5, 2) * args.size * 0.4 + 10], 1)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.randint(0, num_classes, (5,)))
        samples.append(sample.to(args.device))
    return {
        "inputs": torch.randn(args.batch, 3, args.size, args.size, device=args.device),
        "samples": samples,
    }


def trained(model: Any, batch: dict[str, Any], extra: Callable[[], torch.Tensor] | None = None) -> Step:
    """One step of a detector: loss, backward, SGD."""
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-6)

    def step() -> None:
        total, _ = model.parse_losses(model.loss(batch["inputs"], batch["samples"]))
        if extra is not None:
            total = total + extra()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def mmdet_style(student: Any, teacher: Any, batch: dict[str, Any]) -> Step:
    """As mmdet's distilling detectors do: the whole teacher in float32, its KL loss on the class logits."""
    loss, seen = KnowledgeDistillationKLDivLoss(loss_weight=0.5, T=1), []
    student.bbox_head.register_forward_hook(lambda _, __, outs: seen.append(outs[0]))

    def flat(levels: Any) -> torch.Tensor:
        return torch.cat(
            [level.permute(0, 2, 3, 1).reshape(-1, student.bbox_head.num_classes) for level in levels]
        )

    def extra() -> torch.Tensor:
        with torch.no_grad():
            taught = teacher.bbox_head(teacher.extract_feat(batch["inputs"]))[0]
        return loss(flat(seen.pop()), flat(taught))

    return trained(student, batch, extra)


def main() -> None:
    """Time the variants in turn, print the table, write the JSON."""
    args = parse_args()
    register_all_modules()
    student, teacher = load_config(args.student).model, load_config(args.teacher).model

    def stock(cfg: Any) -> Any:
        return MODELS.build(cfg).to(args.device).train()

    def frozen() -> Any:
        return stock(teacher).eval().requires_grad_(False)

    def distilled(precision: str) -> Any:
        entry = {"config": teacher, "checkpoint": None, "precision": precision}
        terms = {"cls": {"type": "DistillationLoss"}}
        return stock({**student, "type": "KDSingleStageDetector", "teacher": entry, "distill": terms})

    batch = batch_of(args, student.bbox_head.num_classes)
    steps: dict[str, Step] = {
        "student alone": trained(stock(student), batch),
        "mmdet style": mmdet_style(stock(student), frozen(), batch),
        "mmkd, precision='fp32'": trained(distilled("fp32"), batch),
        "mmkd": trained(distilled("auto"), batch),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.rounds + 2):
        for name in times:
            start = time.perf_counter()
            steps[name]()
            if args.device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn >= 2:  # the first ones allocate
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: value / medians["student alone"] for name, value in medians.items()}
    print(f"\n{args.student} ← {args.teacher}, {args.size}², batch {args.batch}, {args.device}\n")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.3f} × |")
    about = {
        "options": {key: str(value) for key, value in vars(args).items()},
        "versions": {
            "mmkd": mmkd.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads()},
        "ratios": ratios,
        "rounds": {
            name: [value / medians["student alone"] for value in values] for name, values in times.items()
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
