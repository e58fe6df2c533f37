"""onnxruntime sorts nodes without regard to what a loop reads from outside."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from mmkd.export.int8 import sort_nodes


def test_a_loop_comes_after_what_its_body_reads() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Identity", ["outside"], ["found"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("found", TensorProto.FLOAT, [2]),
        ],
    )
    loop = helper.make_node("Loop", ["count", ""], ["all"], body=body)
    graph = helper.make_graph(
        [loop, helper.make_node("Identity", ["x"], ["outside"])],
        "graph",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("all", TensorProto.FLOAT, [None, 2])],
    )
    sort_nodes(graph)
    assert [node.op_type for node in graph.node] == ["Identity", "Loop"]
    onnx.checker.check_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
