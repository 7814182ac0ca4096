"""Means that keep fp32's precision in ONNX Runtime's instance norm."""

from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# (batch, channels, z, y, x)
SPATIAL = (2, 3, 4)
# Before it ReduceMean takes its axes another way.
OLDEST_OPSET = 18


def sum_by_axes(content: bytes) -> bytes:
    """The graph with every fp32 instance norm over z, y, x replaced by one whose sums run over one axis at a time.

    ONNX Runtime's own adds a whole channel up in one go: over the 885 000 voxels of a 96^3 window its rounding moves
    logits by up to 2e-4 of their range, a hundred times more than the convolutions do. A graph without such norms, or
    of an opset before 18, comes back as it is.
    """
    model = onnx.load_model_from_string(content)
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    norms = [node for node in model.graph.node if node.op_type == "InstanceNormalization"]
    if opset < OLDEST_OPSET or not norms:
        return content
    spatial = _float_volumes(model)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for number, node in enumerate(nodes):
        known = node.op_type == "InstanceNormalization" and node.input[0] in spatial
        model.graph.node.extend(_instance_norm(model.graph, node, f"norm{number}") if known else [node])
    return bytes(model.SerializeToString())


def _float_volumes(model: onnx.ModelProto) -> set[str]:
    """Names of the fp32 values (batch, channels, z, y, x); a norm of groups is over other axes."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        and len(value.type.tensor_type.shape.dim) == len(SPATIAL) + 2
    }


def _instance_norm(graph: onnx.GraphProto, node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """``(x - mean) / sqrt(mean((x - mean)^2) + eps) * scale + bias``, as ONNX defines it."""
    image, scale, bias = node.input
    eps = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
    nodes: list[onnx.NodeProto] = []

    def constant(key: str, values: NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(values, f"{name}/{key}"))
        return f"{name}/{key}"

    def add(kind: str, *inputs: str, to: str = "") -> str:
        output = to or f"{name}/{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [output]))
        return output

    axes = [constant(f"axis{axis}", np.array([axis], np.int64)) for axis in SPATIAL]
    per_channel = constant("per_channel", np.array([-1, 1, 1, 1], np.int64))

    def mean(of: str) -> str:
        for axis in reversed(axes):
            of = add("ReduceMean", of, axis)  # keeps the axis, by ONNX's default
        return of

    centred = add("Sub", image, mean(image))
    variance = mean(add("Mul", centred, centred))
    deviation = add("Sqrt", add("Add", variance, constant("eps", np.array(eps, np.float32))))
    scaled = add("Mul", add("Div", centred, deviation), add("Reshape", scale, per_channel))
    add("Add", scaled, add("Reshape", bias, per_channel), to=node.output[0])
    return nodes
