"""What a training step costs with a teacher, as a ratio to the student's alone in the same run.

    python benchmarks/step_cost.py

The variants take turns, step by step, so that whatever else the machine does meets all of them; each figure
is the median over the rounds of the ratio within a round. The student is there twice: the second one shows
how far to trust the figures. Weights are random: they do not change the cost. MMRazor takes part where it is
installed; benchmarks/razor.py says how.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import Step, paired_ratios, peak_bytes, random_batch, take_turns, trained, write
from mmdet.models.losses import KnowledgeDistillationKLDivLoss
from mmdet.utils import register_all_modules
from razor import import_mmrazor, single_teacher_distill

from mmkd.compat import load_config
from mmkd.heads.calls import Calls
from mmkd.heads.observe import observe
from mmkd.registry import MODELS
from mmkd.teachers import CachedTeacher

MIB = 2**20


def parse_args() -> argparse.Namespace:
    """Options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", default="mmdet::atss/atss_r50_fpn_1x_coco.py")
    parser.add_argument("--teacher", default="mmdet::atss/atss_r101_fpn_1x_coco.py")
    parser.add_argument("--cls-layer", default="bbox_head.atss_cls", help="MMRazor's source of class logits")
    parser.add_argument("--size", type=int, default=320, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def mmdet_style(student: Any, teacher: Any, batch: Any) -> Step:
    """As mmdet's distilling detectors do: the whole teacher in float32, its KL loss on the class logits."""
    loss, seen = KnowledgeDistillationKLDivLoss(loss_weight=0.5, T=1), []
    student.bbox_head.register_forward_hook(lambda _, __, outs: seen.append(outs[0]))

    def flat(levels: Any) -> torch.Tensor:
        return torch.cat(
            [level.permute(0, 2, 3, 1).reshape(-1, student.bbox_head.num_classes) for level in levels]
        )

    def extra() -> torch.Tensor:
        with torch.no_grad():
            taught = teacher.bbox_head(teacher.extract_feat(batch[0]))[0]
        return loss(flat(seen.pop()), flat(taught))

    return trained(student, batch, extra)


def losses_alone(model: Any, batch: Any) -> Step:
    """The distillation losses, forward and backward to the head's outputs, as `loss` calls them."""
    answer = model.teacher.ask(*batch)()
    with observe(model.bbox_head, labels=("loss_cls",)) as seen:
        model.loss(*batch)
    forwards: Calls[Any] = Calls()
    for feats, outputs in seen.forwards:
        raw = tuple([level.detach().requires_grad_() for level in part] for part in outputs)
        forwards.add((feats, raw))
    seen.forwards = forwards
    needs = frozenset[Any]().union(*(term.asks for term in model.terms.values()))

    def step() -> None:
        student, context = model._read(seen, batch[1], needs)
        sum(term(student, answer, context) for term in model.terms.values()).backward()

    return step


def build_steps(args: argparse.Namespace, folder: Path) -> dict[str, Step]:
    """A training step of each variant."""
    student, teacher = load_config(args.student).model, load_config(args.teacher).model
    batch = random_batch(args.batch, args.size, args.size, student.bbox_head.num_classes, args.device)
    for index, sample in enumerate(batch[1]):
        (folder / f"{index}.jpg").touch()
        sample.set_metainfo({"img_path": str(folder / f"{index}.jpg")})

    def stock(cfg: Any) -> Any:
        return MODELS.build(copy.deepcopy(cfg)).to(args.device).train()

    def distilled(**options: Any) -> Any:
        entry = {"config": teacher, "checkpoint": None, **options}
        terms = {"cls": {"type": "DistillationLoss"}}
        model = stock({**student, "type": "KDSingleStageDetector", "teacher": entry, "distill": terms})
        if isinstance(model.teacher, CachedTeacher):
            model.teacher.for_pipeline("benchmark")
        return model

    alone = stock(student)
    steps = {"student alone": trained(alone, batch)}
    steps["mmdet style"] = mmdet_style(stock(student), stock(teacher).eval().requires_grad_(False), batch)
    registry = import_mmrazor()
    if isinstance(registry, str):
        print(f"without MMRazor ({registry})")
    else:
        with torch.no_grad():
            levels = len(alone.extract_feat(batch[0]))
        model = single_teacher_distill(registry, student, teacher, args.cls_layer, levels).to(args.device)
        model.train()
        steps["MMRazor 1.0.0"] = trained(model, batch)
    steps["mmkd, precision='fp32'"] = trained(distilled(precision="fp32"), batch)
    default = distilled()
    steps["mmkd"] = trained(default, batch)
    steps["mmkd, cached"] = trained(distilled(cache={"dir": str(folder / "cache")}), batch)
    steps["mmkd, the losses alone"] = losses_alone(default, batch)
    steps["student alone, again"] = trained(stock(student), batch)
    return steps


def main() -> None:
    """Time the variants in turn, print the table, write the JSON."""
    args = parse_args()
    register_all_modules()
    with tempfile.TemporaryDirectory() as folder:
        steps = build_steps(args, Path(folder))
        times = take_turns(steps, args.rounds)
        memory = {name: peak_bytes(step, args.device) / MIB for name, step in steps.items()}
    ratios = paired_ratios(times, "student alone")
    print(f"\n{args.student} ← {args.teacher}, {args.size}², batch {args.batch}, {args.device}\n")
    print("| a training step | time | allocated at its peak |\n|---|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.3f} × | {memory[name]:.0f} MiB |")
    options = {key: str(value) for key, value in vars(args).items()}
    write("step_cost", args.out, options=options, ratios=ratios, peak_mib=memory, seconds=times)


if __name__ == "__main__":
    main()
