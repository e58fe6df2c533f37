"""The cost of a training step with a teacher, as a ratio to the student alone in the same run.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --student mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py \\
        --teacher mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py

The student learns with the recipe that `mmkd-train --teacher` recommends: for the default pair logits, boxes,
centerness and neck, live, cached, and with a teacher that is asked in every second step. For comparison, a
one-stage student learns only class logits, like mmdet's and MMRazor's variants here, and another student only
features; the difference between the last two is the cost of the teacher's later heads at the student's
regions. The processor is named, because its support for bfloat16 decides.

The variants take turns, step by step, so that other load on the machine affects all of them; each figure is
the median over the rounds of the ratio within a round. The student runs twice: the second one shows how far
to trust the figures. Weights are random, which does not change the cost. MMRazor is included if it is
installed, see benchmarks/razor.py.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import Step, paired_ratios, peak_bytes, processor, random_batch, take_turns, trained, write
from mmdet.models.losses import KnowledgeDistillationKLDivLoss
from mmdet.utils import register_all_modules
from razor import import_mmrazor, single_teacher_distill

from mmkd.compat import load_config
from mmkd.detectors.recipe import recommended
from mmkd.heads.calls import Calls
from mmkd.losses.automatic import INTERVAL
from mmkd.outputs import has_dense_head
from mmkd.registry import MODELS
from mmkd.teachers import CachedTeacher

MIB = 2**20
MEASURING = "mmkd, a step that measures its automatic weights"
IDLE = "mmkd, every=2, a step without the teacher"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


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
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: of this process alone, where others run too"
    )
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def mmdet_style(student: Any, teacher: Any, batch: Any) -> Step:
    """Distil like mmdet's detectors: the whole teacher in float32, mmdet's KL loss on the class logits."""
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
    """The distillation losses alone, backward to the student's outputs; regions run the teacher's heads."""
    seen: list[Any] = []
    add_terms = model._add_terms
    model._add_terms = lambda losses, step, *_: seen.append(step) or losses
    model.loss(*batch)
    model._add_terms = add_terms
    answers = [answer() for answer in seen[0].answers]
    watched = replace(
        seen[0],
        answers=[lambda answer=answer: answer for answer in answers],
        **{name: leaves(getattr(seen[0], name)) for name in ("student", "dense", "places")},
    )

    def step() -> None:
        sum(model._add_terms({}, watched, *batch).values()).backward()

    return step


def box_head(model: Any) -> Any:
    """A two-stage detector's box head config; the last one of a cascade."""
    heads = model.roi_head.bbox_head
    return heads[-1] if isinstance(heads, list) else heads


def leaves(value: Any) -> Any:
    """The watched outputs as leaf tensors, at which the backward pass ends."""
    if isinstance(value, torch.Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, (tuple, list)):
        return type(value)([leaves(part) for part in value])
    if isinstance(value, dict):
        return {name: leaves(part) for name, part in value.items()}
    if isinstance(value, Calls):
        calls: Calls[Any] = Calls()
        for call in value:
            calls.add(leaves(call))
        return calls
    if type(value).__module__.startswith("mmkd."):
        same = copy.copy(value)
        vars(same).update(leaves(vars(value)))
        return same
    return value


def between(model: Any, batch: Any) -> Step:
    """A step between two measurements of automatic weights, and with ``every`` one without the teacher."""
    step = trained(model, batch)

    def usual() -> None:
        for term in model.terms.values():
            for count in (term.auto, term.turns):
                if count is not None:
                    count.done = INTERVAL + 1
        step()

    step()  # the first one measures
    return usual


def measuring(model: Any, batch: Any) -> Step:
    """A step that measures the automatic weights of all terms, as every 50th step does."""
    step = trained(model, batch)

    def first() -> None:
        for term in model.terms.values():
            term.auto.done = 0
        step()

    return first


def build_steps(args: argparse.Namespace, folder: Path) -> dict[str, Step]:
    """A training step of each variant."""
    student, teacher = load_config(args.student).model, load_config(args.teacher).model
    for model in (student, teacher):
        model.backbone.init_cfg = None
    classes = (student.get("bbox_head") or box_head(student)).num_classes
    batch = random_batch(args.batch, args.size, args.size, classes, args.device)
    for index, sample in enumerate(batch[1]):
        (folder / f"{index}.jpg").touch()
        sample.set_metainfo({"img_path": str(folder / f"{index}.jpg")})

    def stock(cfg: Any) -> Any:
        return MODELS.build(copy.deepcopy(cfg)).to(args.device).train()

    def distilled(terms: Any, **options: Any) -> Any:
        entry = {"config": teacher, "checkpoint": None, **options}
        cfg = {"type": "KDDetector", "student": student.type, "teacher": entry, "distill": terms}
        model = stock({**student, **cfg})
        if isinstance(model.teacher, CachedTeacher):
            model.teacher.for_pipeline("benchmark")
        return model

    alone = stock(student)
    recipe = recommended(student, {"config": teacher, "checkpoint": None}, None)["distill"]
    print("mmkd:", ", ".join(f"{name} {loss['type']}" for name, loss in recipe.items()))
    steps = {"student alone": trained(alone, batch)}
    default = distilled(recipe)
    steps["mmkd"] = between(default, batch)
    steps[IDLE] = between(distilled(recipe, every=2), batch)
    if not has_dense_head(alone):
        steps["mmkd, features alone"] = between(distilled({"neck": recipe["neck"]}), batch)
        steps[MEASURING] = measuring(distilled(recipe), batch)
        steps["mmkd, the later heads and the losses alone"] = losses_alone(default, batch)
        steps["student alone, again"] = trained(stock(student), batch)
        return steps
    steps["mmkd, cached"] = between(distilled(recipe, cache={"dir": str(folder / "recipe")}), batch)
    steps[MEASURING] = measuring(distilled(recipe), batch)
    steps["mmkd, the losses alone"] = losses_alone(default, batch)
    terms = {"cls": {"type": "DistillationLoss"}}
    steps["mmkd, logits alone"] = trained(distilled(terms), batch)
    cached = distilled(terms, cache={"dir": str(folder / "logits")})
    steps["mmkd, logits alone, cached"] = trained(cached, batch)
    steps["mmkd, logits alone, precision='fp32'"] = trained(distilled(terms, precision="fp32"), batch)
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
    steps["student alone, again"] = trained(stock(student), batch)
    return steps


def main() -> None:
    """Time the variants in turn, print the table and write the JSON."""
    args = parse_args()
    register_all_modules()
    with tempfile.TemporaryDirectory() as folder:
        steps = build_steps(args, Path(folder))
        times = take_turns(steps, args.rounds, CLOCKS[args.clock])
        memory = {name: peak_bytes(step, args.device) / MIB for name, step in steps.items()}
    ratios = paired_ratios(times, "student alone")
    print(f"\n{processor()}, {torch.get_num_threads()} threads")
    print(f"{args.student} ← {args.teacher}, {args.size}², batch {args.batch}, {args.device}\n")
    print("| a training step | time | allocated at its peak |\n|---|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.3f} × | {memory[name]:.0f} MiB |")
    more = ratios[MEASURING] - ratios["mmkd"]
    print(
        f"\nAutomatic weights cost {more / INTERVAL:+.4f} × of the student's step in the mean over {INTERVAL}"
    )
    for every in (2, 4):
        mean = ratios[IDLE] + (ratios["mmkd"] - ratios[IDLE]) / every
        print(f"With every={every} a step takes {mean:.3f} × in the mean")
    options = {key: str(value) for key, value in vars(args).items()}
    write("step_cost", args.out, options=options, ratios=ratios, peak_mib=memory, seconds=times)


if __name__ == "__main__":
    main()
