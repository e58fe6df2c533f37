"""An ONNX model with the network's convolutions in int8, quantised by onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmkd.terminal import silence


def quantised(made: Any, images: Sequence[Any]) -> Any:
    """The same model with the network's convolutions in int8, calibrated on images (1, 3, H, W)."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            return None if image is None else {"images": image}

    with tempfile.TemporaryDirectory() as folder, silence():  # it recommends steps that we leave out
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(made, source)
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
        )
        found = onnx.load(target)
    sort_nodes(found.graph)
    return found


def sort_nodes(graph: Any) -> None:
    """Sort the nodes topologically; onnxruntime's order ignores what the loop reads from outside."""
    made = {name for node in graph.node for name in node.output}
    ready: set[str] = set()
    left, ordered = list(graph.node), []
    while left:
        blocked = []
        for node in left:
            if (_read_by(node) & made) <= ready:
                ready.update(node.output)
                ordered.append(node)
            else:
                blocked.append(node)
        left = blocked
    del graph.node[:]
    graph.node.extend(ordered)


def _read_by(node: Any) -> set[str]:
    """Names that a node reads, also inside loop and branch bodies."""
    inner = [part for attribute in node.attribute for part in attribute.g.node]
    return set(node.input).union(*(_read_by(part) for part in inner))
