"""`FrozenTeacher`: a trained detector used as teacher and never updated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmkd.errors import UserError, naming
from mmkd.functional.checks import check_bool, check_choice
from mmkd.heads.towers import substituted
from mmkd.outputs import Place, detect
from mmkd.outputs.transformers import Encoded
from mmkd.structures import OF_CONTEXT, DenseOutputs, HeadSpec, Levels, Need, RowOutputs
from mmkd.teachers.acceleration import Precision
from mmkd.teachers.building import build_detector, class_names_of
from mmkd.teachers.config import teacher_model_and_checkpoint
from mmkd.teachers.facts import describe
from mmkd.teachers.forward import Forward, computed
from mmkd.teachers.pixels import Renormalizer
from mmkd.teachers.protocol import Teacher
from mmkd.teachers.stream import OwnStream


class FrozenTeacher(Teacher):
    """A trained detector in eval mode that returns `DenseOutputs` without gradient.

    Args:
        teacher: see `teacher_model_and_checkpoint`; ``precision`` sets the dtype it computes in, see
            `choose_dtype`. Its outputs are always float32. ``compile=True`` runs it with `torch.compile`;
            ``own_stream=True`` runs it in parallel with the student's forward, on CUDA.
        needs: the parts of `DenseOutputs` that the losses read. Others are not computed. With ``'layers'``
            all layers are kept, with ``'places'`` all heads.
        student: the student; its pixel normalisation is compared with the teacher's.

    Raises:
        UserError: the checkpoint does not load strictly, or the image channels differ.
    """

    def __init__(self, teacher: Mapping[str, Any], needs: frozenset[Need], student: Any) -> None:
        self.model_cfg, checkpoint = teacher_model_and_checkpoint(teacher)
        precision = teacher.get("precision", "auto")
        compiled, self.own_stream = teacher.get("compile", False), teacher.get("own_stream", False)
        with naming("teacher."):
            check_choice("precision", precision, Precision)
            check_bool(compile=compiled, own_stream=self.own_stream)
        self.needs = computed(needs)
        head = "rpn_head" if hasattr(student, "rpn_head") else "bbox_head"
        model, meta = build_detector(
            self.model_cfg, checkpoint, head=head if self.needs - {"feats"} else None
        )
        self.class_names = class_names_of(meta)
        self._gives_boxes, self._detects = "boxes" in needs, "detections" in needs
        if self._detects and self.needs - {"feats"}:  # detecting also decodes boxes, and runs NMS on them
            precision = "fp32"
        self.forward = Forward(model, needs, precision, compiled)
        self._stream = OwnStream()
        self.spec = self.forward.spec
        self.of_classes = not hasattr(model, "rpn_head")  # an RPN only tells objects from background
        self.pixels = Renormalizer(
            student.data_preprocessor, model.data_preprocessor, self.forward.example.shape[1]
        )
        left_out, folded = self.forward.make_cheaper()
        self.facts = describe(
            model,
            {
                "config": str(teacher["config"]) if isinstance(teacher.get("config"), str) else "inline",
                "checkpoint": checkpoint,
                "classes": None if self.class_names is None else list(self.class_names),
                "left_out": left_out,
                "batch_norm_folded": folded,
                "pixels_renormalized": not self.pixels.is_identity,
            },
        )

    @property
    def model(self) -> Any:
        """The detector."""
        return self.forward.model

    @property
    def head(self) -> Any:
        """The teacher's dense head."""
        return self.forward.head

    @property
    def identity(self) -> list[Any]:
        """Weights, config, and the outputs in use."""
        detects = ["detections"] if self._detects else []
        return [weights_digest(self.model), self.model_cfg, sorted(self.needs) + detects]

    def for_example(self) -> DenseOutputs:
        """As `Teacher.for_example`."""
        return self.forward.for_example()

    def ask(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> Callable[[], DenseOutputs]:
        """Start computing a batch; call the result to get the answer of `__call__`.

        With ``own_stream`` on CUDA, the teacher starts now, on its own stream. Otherwise it runs when the
        answer is requested.

        Args:
            inputs_BCHW: the student's normalised and padded input.
            data_samples: those of the batch, with ``img_shape``.
        """
        image_shapes = [sample.img_shape for sample in data_samples]
        if not (self.own_stream and inputs_BCHW.is_cuda):
            return lambda: self.complete(self(inputs_BCHW, image_shapes))
        result = self._stream.begin(inputs_BCHW, lambda: self(inputs_BCHW, image_shapes))
        return lambda: self.complete(result())

    @torch.no_grad()
    def complete(self, outputs: DenseOutputs) -> DenseOutputs:
        """Add what the model does not compute: decoded boxes, if a loss reads them."""
        if not self._gives_boxes:
            return outputs
        return replace(outputs, boxes=self.forward.adapter.boxes(self.head, outputs))

    def serve(self, place: Place, student: HeadSpec, reads: frozenset[Need]) -> HeadSpec:
        """As `Teacher.serve`."""
        why = place.lacks(self.model)
        if why is not None:
            raise UserError(
                f"The teacher has no predictions at the student's place: {why}.",
                expected="a teacher that predicts there too, or feature losses (PKDLoss, …)",
                found=type(self.model).__name__,
                remedy="choose another teacher, or other losses",
            )
        offered = place.offers(self.model) - OF_CONTEXT
        lacking = sorted(reads - OF_CONTEXT - offered)
        if lacking:
            raise UserError(
                f"The teacher provides no {', '.join(lacking)} at the student's place.",
                expected=f"a loss on {', '.join(sorted(offered))}",
                found=f"a loss on {', '.join(sorted(reads - OF_CONTEXT))} with a {type(self.model).__name__}",
                remedy="choose another loss, or another teacher",
            )
        self.needs |= {"cls_logits"}
        return place.spec(self.model)

    def at(
        self, place: Place, answer: DenseOutputs, question: Any, classes: Sequence[int] | None = None
    ) -> RowOutputs:
        """As `Teacher.at`."""
        device = self.forward.device
        assert device is not None, "a question at a place follows one about the batch"
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            rows = place.answer(self.model, answer.inner, question, classes)
        return rows.map(lambda part: part.to(torch.float32, copy=True))

    def answer(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> DenseOutputs:
        """As `__call__`, but takes data samples."""
        return self(inputs_BCHW, [sample.img_shape for sample in data_samples])

    def __call__(self, inputs_BCHW: Tensor, image_shapes: Sequence[tuple[int, ...]]) -> DenseOutputs:
        """Run the teacher on a batch.

        Args:
            inputs_BCHW: the student's normalised and padded input.
            image_shapes: (height, width) of each image without padding.

        Returns:
            The parts in `needs`, in float32 and without gradient.
        """
        with torch.autocast(inputs_BCHW.device.type, enabled=False):
            if self.forward.unconfirmed and self.forward.device is None:
                pixels_BCHW = self.pixels(inputs_BCHW[:1].float(), image_shapes[:1])
                if not self.forward.confirm(pixels_BCHW, image_shapes[:1]):
                    self.facts = {**self.facts, "left_out": [], "batch_norm_folded": False}
            self._make_ready(inputs_BCHW.device)
            with torch.inference_mode():
                pixels_BCHW = self.pixels(inputs_BCHW.float(), image_shapes).to(self.forward.dtype)
                outputs = self.forward(pixels_BCHW, image_shapes)
                if self._detects:
                    found = self._detections(pixels_BCHW, image_shapes, outputs.inner)
                    outputs = replace(outputs, detections=found)
        if "feats" not in self.needs:  # only their shapes are compared: skip copying values
            outputs = replace(outputs, feats=tuple(level.to("meta") for level in outputs.feats))
        # Outside inference mode a copy is a normal tensor, which a loss may save for its gradient.
        return outputs.map(lambda level: level.to(torch.float32, copy=True))

    def _detections(self, pixels_BCHW: Tensor, image_shapes: Sequence[Any], inner: Any) -> list[Any]:
        feats = inner.feats if isinstance(inner, Encoded) else inner
        if not self.forward.reads_head:  # its heads then stay in float32
            feats = tuple(level.float() for level in feats)
        return detect(self.model, pixels_BCHW, image_shapes, feats)

    def detect(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> list[Any]:
        """As `Teacher.detect`: its predictions after its own NMS.

        If no loss reads its detections, a detector with all heads is built for this, in float32.
        """
        image_shapes = [sample.img_shape for sample in data_samples]
        with torch.inference_mode():
            pixels_BCHW = self.pixels(inputs_BCHW.float(), image_shapes)
            return detect(self._whole.to(inputs_BCHW.device), pixels_BCHW, image_shapes)

    @cached_property
    def _whole(self) -> Any:
        """The detector with everything it needs to predict."""
        if self._detects:
            return self.model
        return build_detector(self.model_cfg, self.facts["checkpoint"], head=None)[0]

    def through(self, layers: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """Run layers of the teacher on the student's tensors; gradients flow to them.

        Args:
            layers: a function of the teacher's detector and a tensor in its dtype that returns another
                tensor.
            x: the student's tensor.

        Returns:
            The result in float32. The teacher's weights get no gradient.
        """
        self._make_ready(x.device)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.forward.dtype)
            if x.dim() == 4:
                x = x.to(memory_format=self.forward.layout)
            return layers(self.model, x).float()

    def crossed(self, layer: int, towers: Mapping[str, Levels], needs: frozenset[Need]) -> DenseOutputs:
        """The rest of the teacher's head applied to the student's features; gradients flow to them.

        Args:
            layer: the number of layers of ``cls_convs`` and ``reg_convs`` to skip; ≥ 1.
            towers: the features to continue from, per tower name and level; as wide as the teacher's.
            needs: the parts to return; may include ``boxes``.

        Returns:
            Outputs in float32, without features.
        """
        head = self.head
        levels = towers["cls_convs"]
        self._make_ready(levels[0].device)
        dtype = self.forward.dtype
        given = {name: tuple(level.to(dtype) for level in part) for name, part in towers.items()}
        with torch.autocast(levels[0].device.type, enabled=False), substituted(head, layer, given):
            raw = head(given["cls_convs"])  # the towers ignore this input
        adapter = self.forward.adapter
        outputs = adapter.outputs(head, (), raw, computed(needs)).map(lambda level: level.float())
        if "boxes" in needs:
            outputs = replace(outputs, boxes=adapter.boxes(head, outputs))
        return outputs

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype used on a device."""
        return self.forward.choose_dtype(device)[0]

    def _make_ready(self, device: torch.device) -> None:
        self.forward.make_ready(device)

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the student to another device; the teacher keeps its own dtype."""
        device = fn(torch.empty(0, device=next(self.model.parameters()).device)).device
        self.model.to(device)


def weights_digest(model: Any) -> str:
    """A fingerprint of a model's weights: SHA-256 of its state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
