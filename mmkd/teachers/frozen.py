"""`FrozenTeacher`: a detector that is asked and never trained."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmkd.errors import UserError
from mmkd.heads import adapter_for, is_deformable, misreads_channels_last
from mmkd.heads.towers import record_towers, substituted, with_towers
from mmkd.outputs import Place, dense_head, encode, example_pixels
from mmkd.outputs.features import layout_of_features
from mmkd.structures import OF_CONTEXT, DenseOutputs, HeadSpec, Levels, Need, RowOutputs
from mmkd.teachers.acceleration import (
    alike,
    check_precision,
    check_switch,
    choose_dtype,
    compiled,
    fold_batch_norm,
    has_shifted_windows,
)
from mmkd.teachers.building import (
    build_detector,
    class_names_of,
    leave_out_heads,
)
from mmkd.teachers.config import teacher_model_and_checkpoint
from mmkd.teachers.facts import describe
from mmkd.teachers.pixels import Renormalizer
from mmkd.teachers.protocol import Teacher
from mmkd.teachers.pruning import skip_unread
from mmkd.teachers.stream import OwnStream

_NOT_COMPUTED: frozenset[Need] = OF_CONTEXT | {"boxes", "towers", "places"}


# Other layouts and orders of float32 sums, on a GPU in TF32, differ less; a wrong fold differs far more.
_ALIKE = 1e-2
Shapes = Sequence[tuple[int, ...]]


def _computed(needs: frozenset[Need]) -> frozenset[Need]:
    """What the model has to compute; boxes are decoded from what the head says of them."""
    boxes: frozenset[Need] = frozenset({"bbox_pred"} if "boxes" in needs else ())
    return (needs - _NOT_COMPUTED) | boxes


class FrozenTeacher(Teacher):
    """A trained detector in eval mode that gives `DenseOutputs` without gradient.

    Args:
        teacher: see `teacher_model_and_checkpoint`; ``precision`` says what it computes in, see
            `choose_dtype`. Whatever that is, its outputs are float32. ``compile=True`` runs it by
            `torch.compile`; ``own_stream=True`` beside the student's forward, on CUDA.
        needs: the parts of `DenseOutputs` that the losses read. Others are not
            computed. With ``'layers'`` none of its layers is left out, with ``'places'`` none of its heads.
        student: the student; its pixels are compared with the teacher's.

    Raises:
        UserError: the checkpoint does not load strictly, or its images have other channels.
    """

    def __init__(self, teacher: Mapping[str, Any], needs: frozenset[Need], student: Any) -> None:
        self.model_cfg, checkpoint = teacher_model_and_checkpoint(teacher)
        self.reads_head = bool(_computed(needs) - {"feats"})
        head = "rpn_head" if hasattr(student, "rpn_head") else "bbox_head"
        self.model, meta = build_detector(self.model_cfg, checkpoint, head=head if self.reads_head else None)
        self.gives_boxes, self.gives_towers = "boxes" in needs, "towers" in needs
        self.needs = _computed(needs)
        self.asked_at_places = "places" in needs
        self.class_names = class_names_of(meta)
        self.example = example_pixels(self.model, lambda x: self._forward(x, _shapes(x)))
        self.pixels = Renormalizer(
            student.data_preprocessor, self.model.data_preprocessor, self.example.shape[1]
        )
        if self.reads_head:
            self.adapter = adapter_for(self.head)
            self.spec = self.adapter.spec(self.head)
        else:
            self.spec = layout_of_features(self.model, self.example)
        self.of_classes = not hasattr(self.model, "rpn_head")  # an RPN says only that there is an object
        self.deformable, self.windows = is_deformable(self.model), has_shifted_windows(self.model)
        self._run: Callable[[Tensor, Any], tuple[Any, Any, Any]] = self._forward
        # Until a real image has shown that what follows changes nothing.
        self._as_built: Any = copy.deepcopy(self.model)
        skipped: list[str] = []
        if not {"layers", "places"} & needs:
            skipped = self._skip_unread() if self.reads_head else leave_out_heads(self.model)
        self.precision = check_precision(teacher.get("precision", "auto"))
        self.compiles = check_switch("compile", teacher)
        self.own_stream = check_switch("own_stream", teacher)
        folded = fold_batch_norm(self.model, self._example)
        # mmcv's folded layers are new ones.
        self.model.requires_grad_(False)
        self.model.eval()
        # The regions of a RoI head are cut out of copies in the default format.
        bound = any(
            misreads_channels_last(x) for name, x in self.model.named_children() if name != "roi_head"
        )
        self._layout = torch.contiguous_format if bound else torch.channels_last
        self.model.to(memory_format=self._layout)
        self._device: torch.device | None = None  # that it is made ready for
        self._dtype = torch.float32
        self._stream = OwnStream()
        self.facts = describe(
            self.model,
            {
                "config": str(teacher["config"]) if isinstance(teacher.get("config"), str) else "inline",
                "checkpoint": checkpoint,
                "classes": None if self.class_names is None else list(self.class_names),
                "left_out": skipped,
                "batch_norm_folded": folded,
                "pixels_renormalized": not self.pixels.is_identity,
            },
        )

    @property
    def head(self) -> Any:
        """The teacher's dense head."""
        return dense_head(self.model)

    @property
    def identity(self) -> list[Any]:
        """Weights, config, and what is asked of it."""
        return [_digest(self.model), self.model_cfg, sorted(self.needs)]

    def for_example(self) -> DenseOutputs:
        """What it says of an example image: the layout of its answers, before it is asked."""
        with torch.no_grad():
            return self._in_layout(self.example, _shapes(self.example))

    def ask(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> Callable[[], DenseOutputs]:
        """Put the question of `__call__`; what comes back gives the answer when called.

        With ``own_stream`` on CUDA the teacher begins now, on a stream of its own. Else it runs when the
        answer is wanted.

        Args:
            inputs_BCHW: the student's normalised and padded input.
            data_samples: the batch's, with ``img_shape``.
        """
        image_shapes = [sample.img_shape for sample in data_samples]
        if not (self.own_stream and inputs_BCHW.is_cuda):
            return lambda: self.complete(self(inputs_BCHW, image_shapes))
        result = self._stream.begin(inputs_BCHW, lambda: self(inputs_BCHW, image_shapes))
        return lambda: self.complete(result())

    @torch.no_grad()
    def complete(self, outputs: DenseOutputs) -> DenseOutputs:
        """Add what is not computed by the model: decoded boxes, if a loss reads them."""
        if not self.gives_boxes:
            return outputs
        return replace(outputs, boxes=self.adapter.boxes(self.head, outputs))

    def serve(self, place: Place, student: HeadSpec, reads: frozenset[Need]) -> HeadSpec:
        """As `Teacher.serve`."""
        why = place.lacks(self.model)
        if why is not None:
            raise UserError(
                f"The teacher predicts nothing where the student is compared: {why}.",
                expected="a teacher that predicts there too, or losses on features alone (PKDLoss, …)",
                found=type(self.model).__name__,
                remedy="choose another teacher, or other losses",
            )
        offered = place.offers(self.model) - OF_CONTEXT
        lacking = sorted(reads - OF_CONTEXT - offered)
        if lacking:
            raise UserError(
                f"The teacher gives no {', '.join(lacking)} where the student is compared.",
                expected=f"a loss on {', '.join(sorted(offered))}",
                found=f"a loss on {', '.join(sorted(reads - OF_CONTEXT))}, and a {type(self.model).__name__}",
                remedy="choose another loss, or another teacher",
            )
        self.needs |= {"cls_logits"}
        return place.spec(self.model)

    def at(
        self, place: Place, answer: DenseOutputs, question: Any, classes: Sequence[int] | None = None
    ) -> RowOutputs:
        """As `Teacher.at`."""
        assert self._device is not None, "a question at a place follows one about the batch"
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            rows = place.answer(self.model, answer.inner, question, classes)
        return rows.map(lambda part: part.to(torch.float32, copy=True))

    def answer(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> DenseOutputs:
        """As `__call__`, of samples."""
        return self(inputs_BCHW, [sample.img_shape for sample in data_samples])

    def __call__(self, inputs_BCHW: Tensor, image_shapes: Sequence[tuple[int, ...]]) -> DenseOutputs:
        """Ask the teacher about a batch.

        Args:
            inputs_BCHW: the student's normalised and padded input.
            image_shapes: (height, width) of each image without its padding.

        Returns:
            What was asked for, in float32 and without gradient.
        """
        if self._as_built is not None and self._device is None:
            self._confirm(inputs_BCHW[:1], image_shapes[:1])
        self._make_ready(inputs_BCHW.device)
        with torch.inference_mode(), torch.autocast(inputs_BCHW.device.type, enabled=False):
            pixels_BCHW = self.pixels(inputs_BCHW.float(), image_shapes).to(self._dtype)
            outputs = self._in_layout(pixels_BCHW, image_shapes)
        if "feats" not in self.needs:  # only their shapes are compared: no need to copy their values
            outputs = replace(outputs, feats=tuple(level.to("meta") for level in outputs.feats))
        # Outside of inference mode a copy is a tensor like any other, which a loss may save for its gradient.
        return outputs.map(lambda level: level.to(torch.float32, copy=True))

    def through(self, layers: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """Run layers of the teacher on something of the student's; the gradient reaches it.

        Args:
            layers: from the teacher's detector and a tensor in the teacher's dtype to another tensor.
            x: the student's tensor.

        Returns:
            The result in float32. The teacher's weights get no gradient.
        """
        self._make_ready(x.device)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self._dtype, memory_format=self._layout) if x.dim() == 4 else x.to(self._dtype)
            return layers(self.model, x).float()

    def crossed(self, layer: int, towers: Mapping[str, Levels], needs: frozenset[Need]) -> DenseOutputs:
        """What the rest of the teacher's head makes of the student's features; the gradient reaches them.

        Args:
            layer: how many layers of ``cls_convs`` and ``reg_convs`` are left out; ≥ 1.
            towers: by their names, per level, what to go on with; as wide as the teacher's.
            needs: the parts to give, ``boxes`` among them.

        Returns:
            Outputs in float32, without features.
        """
        head = self.head
        levels = towers["cls_convs"]
        self._make_ready(levels[0].device)
        given = {name: tuple(level.to(self._dtype) for level in part) for name, part in towers.items()}
        with torch.autocast(levels[0].device.type, enabled=False), substituted(head, layer, given):
            raw = head(given["cls_convs"])  # which the towers do not look at
        outputs = self.adapter.outputs(head, (), raw, _computed(needs)).map(lambda level: level.float())
        if "boxes" in needs:
            outputs = replace(outputs, boxes=self.adapter.boxes(head, outputs))
        return outputs

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """What it computes in there."""
        return self._choose(device)[0]

    def _choose(self, device: torch.device) -> tuple[torch.dtype, str]:
        return choose_dtype(self.precision, device, deformable=self.deformable, windows=self.windows)

    def _in_layout(self, pixels_BCHW: Tensor, image_shapes: Shapes) -> DenseOutputs:
        """The outputs with images and weights in channels-last format, or in torch's own if that fails."""
        try:
            return self._outputs(pixels_BCHW.to(memory_format=self._layout), image_shapes)
        except RuntimeError as error:  # weight-standardised convolutions view their weights
            if self._layout == torch.contiguous_format:
                raise
            with torch.inference_mode(False):  # weights made within would let no gradient through
                self.model.to(memory_format=torch.contiguous_format)
            outputs = self._outputs(pixels_BCHW.contiguous(), image_shapes)
            self._layout = torch.contiguous_format
            print_log(
                f"the teacher computes in torch's own memory format; in channels-last it fails: "
                f"{str(error).splitlines()[0]}",
                "current",
            )
            return outputs

    @torch.no_grad()
    def _confirm(self, inputs_BCHW: Tensor, image_shapes: Shapes) -> None:
        """Ask about a real image both ways, in float32; if the answers differ, go on as it was built.

        What is left out, folded and laid out was tried with an example image of another size.
        """
        cheap, as_built, self._as_built = self.model, self._as_built, None
        device = inputs_BCHW.device
        with torch.autocast(device.type, enabled=False):
            pixels_BCHW = self.pixels(inputs_BCHW.float(), image_shapes)
            self.model = as_built.to(device)
            wanted = self._outputs(pixels_BCHW, image_shapes).levels()
            self.model = cheap.to(device)
            try:
                found = self._in_layout(pixels_BCHW, image_shapes).levels()
                why = "" if alike(found, wanted, _ALIKE) else "its answer to the first image was another"
            except Exception as error:  # mmcv's and mmdet's layers fail in ways of their own
                why = f"it failed on the first image: {type(error).__name__}: {error}".splitlines()[0]
        if not why:
            return
        self.model, self._layout = as_built, torch.contiguous_format
        self.facts = {**self.facts, "left_out": [], "batch_norm_folded": False}
        print_log(
            f"the teacher computes all of its layers, as they were built. Without those that no loss reads, "
            f"with BatchNorm folded, {why}",
            "current",
            logging.WARNING,
        )

    def _outputs(self, pixels_BCHW: Tensor, image_shapes: Shapes) -> DenseOutputs:
        if self.gives_towers:
            with record_towers(self.head) as towers:
                return with_towers(self._sorted(*self._run(pixels_BCHW, image_shapes)), towers)
        return self._sorted(*self._run(pixels_BCHW, image_shapes))

    def _sorted(self, feats: Any, inner: Any, raw: Any) -> DenseOutputs:
        inner = inner if self.asked_at_places else None
        if not self.reads_head:
            return DenseOutputs(spec=self.spec, feats=tuple(feats), inner=inner)
        return replace(self.adapter.outputs(self.head, feats, raw, self.needs), inner=inner)

    def _forward(self, pixels_BCHW: Tensor, image_shapes: Shapes) -> tuple[Any, Any, Any]:
        feats, inner = encode(self.model, pixels_BCHW, image_shapes)
        return feats, inner, self.head(feats) if self.reads_head else None

    def _make_ready(self, device: torch.device) -> None:
        if self.model.training:
            self.model.eval()
        if device == self._device:
            return
        self._device = device
        self._dtype, reason = self._choose(device)
        self.model.to(device, self._dtype)
        for name, part in self.model.named_children():
            # RoIAlign and attention have no half precision everywhere; what they are given is cast.
            if name not in ("backbone", "neck") and not (self.reads_head and part is self.head):
                part.float()
        if self.compiles:
            self._run = compiled(self._forward)
        print_log(
            f"the teacher computes in {self._dtype} on {device}: {reason}"
            + (", compiled" if self.compiles else ""),
            logger="current",
        )

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow what `nn.Module._apply` applies to another device; the dtype stays the teacher's own."""
        device = fn(torch.empty(0, device=next(self.model.parameters()).device)).device
        self.model.to(device)

    def _skip_unread(self) -> list[str]:
        head = self.head
        with torch.no_grad():
            feats, _ = encode(self.model, self.example, _shapes(self.example))

        def read(raw: Any) -> list[Tensor]:
            outputs = self.adapter.outputs(head, feats, raw, self.needs)
            return outputs.levels()[len(feats) :]

        return [f"bbox_head.{name}" for name in skip_unread(head, feats, read)]

    def _example(self) -> list[Tensor]:
        return self._outputs(self.example, _shapes(self.example)).levels()


def _shapes(pixels_BCHW: Tensor) -> Shapes:
    """Those of images without padding."""
    return [tuple(pixels_BCHW.shape[-2:])] * len(pixels_BCHW)


def _digest(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
