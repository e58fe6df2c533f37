"""What else could make a teacher's forward pass cheaper on a CPU, and what it does to the teacher's AP.

    python benchmarks/teacher_forward.py

Each variant changes the teacher that mmkd uses (BatchNorm folded, channels last, bfloat16 where the processor
has it) in one way. Its time is a ratio to that teacher's in the same run: an ATSS R101 with random weights
that gives class logits, boxes, centerness and features of two images of 320², in turns as in step_cost.py.
The AP is that of the teacher of a distilled config on its test data, as in teacher_precision.py.

``int8`` quantises the inputs and weights of all convolutions but the first and the head's last to 8 bits,
with oneDNN through torch's own operators; their outputs are float32. The range of an input is that of each
image, of the batch, or of the first batch. ``half size`` shows the teacher the image at half its size.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import paired_ratios, processor, random_batch, take_turns, write
from mmdet.utils import register_all_modules
from teacher_precision import EVERYTHING, average_precision
from torch import Tensor, nn

from mmkd.compat import load_config
from mmkd.registry import MODELS
from mmkd.structures import Need
from mmkd.teachers import FrozenTeacher

READ: frozenset[Need] = EVERYTHING | {"feats"}
BASE = "as mmkd runs it"
Detect = Callable[[Tensor, list[Any]], Any]


def parse_args() -> argparse.Namespace:
    """Options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", default="mmdet::atss/atss_r50_fpn_1x_coco.py")
    parser.add_argument("--teacher", default="mmdet::atss/atss_r101_fpn_1x_coco.py")
    parser.add_argument("--config", default="mmkd::bccd/kd.py", help="a distilled config, for the AP")
    parser.add_argument("--size", type=int, default=320, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", help="names of variants; all by default")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


class Int8Conv(nn.Module):
    """A convolution of 8-bit inputs and weights, from float32 to float32."""

    def __init__(self, conv: nn.Conv2d, spans: str) -> None:
        super().__init__()
        self.spans, self.packed, self.span = spans, None, None
        weight = conv.weight.detach().float()
        self.scales = weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
        self.weight = (weight / self.scales[:, None, None, None]).round().to(torch.int8)
        self.zeros = torch.zeros_like(self.scales, dtype=torch.int32)
        self.offset = None if conv.bias is None else conv.bias.detach().float()
        self.how = list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W."""
        x = x.contiguous(memory_format=torch.channels_last)
        if self.packed is None:  # for the size of the first input; oneDNN converts for others
            shape = [1 if self.spans == "image" else len(x), *x.shape[1:]]
            given = self.weight, self.scales, 1.0, 0, *self.how, shape
            self.packed = torch.ops.onednn.qconv_prepack(*given)
        if self.spans == "image":
            return torch.cat([self._of(image, span_of(image)) for image in x.split(1)])
        if self.spans == "batch" or self.span is None:
            self.span = span_of(x)
        return self._of(x, self.span)

    def _of(self, x: Tensor, span: tuple[float, float]) -> Tensor:
        low, high = span
        scale = max((high - low) / 255, 1e-12)
        zero = round(-low / scale)
        quantised = torch.quantize_per_tensor(x, scale, zero, torch.quint8)
        bits = torch.empty(0, dtype=torch.uint8)
        bits = bits.set_(quantised.untyped_storage(), 0, quantised.shape, quantised.stride())
        weights = self.packed, self.scales, self.zeros, self.offset
        after = 1.0, 0, torch.float32, "none", [], ""
        return torch.ops.onednn.qconv_pointwise(bits, scale, zero, *weights, *self.how, *after)


def span_of(x: Tensor) -> tuple[float, float]:
    """The least and largest value, and 0."""
    return min(float(x.amin()), 0.0), max(float(x.amax()), 0.0)


def quantised(teacher: FrozenTeacher, spans: str) -> FrozenTeacher:
    """Put 8-bit convolutions into a float32 teacher."""
    model = teacher.model
    for parent in [
        layer for part in (model.backbone, model.neck, model.bbox_head) for layer in part.modules()
    ]:
        for name, layer in parent.named_children():
            last = parent is model.bbox_head
            if type(layer) is nn.Conv2d and layer.in_channels > 4 and layer.groups == 1 and not last:
                setattr(parent, name, Int8Conv(layer, spans))
    return teacher


def traced(teacher: FrozenTeacher, pixels: Tensor) -> FrozenTeacher:
    """Put a frozen TorchScript of the backbone in its place."""
    with torch.no_grad():
        script = torch.jit.trace(teacher.model.backbone, pixels.to(teacher.forward.dtype), check_trace=False)
        teacher.model.backbone = torch.jit.optimize_for_inference(torch.jit.freeze(script.eval()))
    return teacher


def variants(entry: Any, student: Any, batch: Any) -> dict[str, Callable[[], Detect]]:
    """By name, what makes the function from inputs and samples to the teacher's outputs."""

    def built(**options: Any) -> FrozenTeacher:
        teacher = FrozenTeacher({**entry, **options}, READ, student)
        teacher.answer(*batch)  # moves and converts it
        return teacher

    def asking(make: Callable[[], FrozenTeacher]) -> Callable[[], Detect]:
        def made() -> Detect:
            teacher = make()
            return lambda inputs, samples: (teacher.answer(inputs, samples), samples, teacher)

        return made

    def contiguous() -> FrozenTeacher:
        teacher = built()
        teacher.forward.layout = torch.contiguous_format
        teacher.model.to(memory_format=torch.contiguous_format)
        return teacher

    def frozen() -> FrozenTeacher:
        import torch._inductor.config as inductor

        with inductor.patch(freezing=True):
            return built(compile=True)

    def half() -> Detect:
        teacher = built()

        def detect(inputs: Tensor, samples: list[Any]) -> Any:
            small = nn.functional.interpolate(inputs, scale_factor=0.5, mode="bilinear", antialias=True)
            halved = [sample.new() for sample in samples]
            for sample in halved:
                height, width = sample.img_shape[:2]
                factors = tuple(factor / 2 for factor in sample.scale_factor)
                sample.set_metainfo({"img_shape": (height // 2, width // 2), "scale_factor": factors})
            return teacher.answer(small, halved), halved, teacher

        return detect

    return {
        BASE: asking(built),
        "the same, again": asking(built),
        "precision='fp32'": asking(lambda: built(precision="fp32")),
        "default memory format": asking(contiguous),
        "TorchScript of the backbone, optimize_for_inference": asking(lambda: traced(built(), batch[0])),
        "compile=True": asking(lambda: built(compile=True)),
        "compile=True, inductor's freezing": asking(frozen),
        "int8, range of each image": asking(lambda: quantised(built(precision="fp32"), "image")),
        "int8, range of the batch": asking(lambda: quantised(built(precision="fp32"), "batch")),
        "int8, range of the first batch": asking(lambda: quantised(built(precision="fp32"), "first")),
        "half size": half,
    }


def chosen(found: dict[str, Any], only: list[str] | None) -> dict[str, Any]:
    """The variants to run: the first, and those asked for."""
    return {name: make for name, make in found.items() if name == BASE or not only or name in only}


@torch.no_grad()
def precisions(args: argparse.Namespace) -> dict[str, float]:
    """The AP of each variant of the config's teacher."""
    cfg = load_config(args.config)
    entry = cfg.model.pop("teacher")
    student = MODELS.build({**{k: v for k, v in cfg.model.items() if k != "distill"}, "type": "ATSS"})
    found: dict[str, float] = {}
    for name, make in chosen(variants(entry, student, random_batch(2, 256, 320, 3)), args.only).items():
        ask = make()

        def detect(inputs: Tensor, samples: list[Any], ask: Detect = ask) -> Any:
            answer, samples, teacher = ask(inputs, samples)
            parts = [answer.cls_logits, answer.bbox_pred, *answer.extra.values()]
            metas = [sample.metainfo for sample in samples]
            return teacher.model.bbox_head.predict_by_feat(*parts, batch_img_metas=metas, rescale=True)

        found[name] = average_precision(cfg, student, detect, name)["coco/bbox_mAP"]
    return found


def main() -> None:
    """Time the variants in turn, measure their AP, print the table and write the JSON."""
    args = parse_args()
    register_all_modules()
    student, teacher = load_config(args.student).model, load_config(args.teacher).model
    for model in (student, teacher):
        model.backbone.init_cfg = None
    batch = random_batch(2, args.size, args.size, 80)
    made = variants({"config": teacher, "checkpoint": None}, MODELS.build(student), batch)
    asks = {name: make() for name, make in chosen(made, args.only).items()}
    times = take_turns({name: lambda ask=ask: ask(*batch) for name, ask in asks.items()}, args.rounds)
    ratios, found = paired_ratios(times, BASE), precisions(args)
    print(f"\n{processor()}, {torch.get_num_threads()} threads\n")
    print("| the teacher | time of its forward pass | mAP |\n|---|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.2f} × | {100 * found[name]:.1f} |")
    seconds = {name: statistics.median(values) for name, values in times.items()}
    options = {key: str(value) for key, value in vars(args).items()}
    write("teacher_forward", args.out, options=options, ratios=ratios, mAP=found, seconds=seconds)


if __name__ == "__main__":
    main()
