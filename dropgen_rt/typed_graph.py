"""A float32 graph as a strongly typed one: a float16 or bfloat16 body with float32 where it matters.

Strongly typed engines (TensorRT 11, TensorRT for RTX) take each tensor's type from the graph. Float32 stay: the
graph's input and output, instance norms (their statistics sum a whole window), and the layers that make the logits,
whose rounding to 8 or 11 bits would turn near-ties into ties. Weights are rounded once, here.

Written by hand because the well-kept converters know one of the two types each (onnxruntime's: float16 only) and
clamp weights beyond float16's range without a word; this one refuses them.
"""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper

from dropgen_rt.engines.contract import Precision
from dropgen_rt.errors import ModelError

_TYPES = {
    "fp16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bf16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
# ONNX convolutions and poolings take bfloat16 from this version on.
BFLOAT16_OPSET = 22
# Operators that compute in float32 whatever the body's type.
FLOAT32_OPERATORS = {"InstanceNormalization", "ReduceMean", "ReduceSum", "Softmax", "Log", "Exp", "Sqrt", "Pow"}
# Inputs that the ONNX standard fixes to float32: Resize's regions and scales.
_FIXED_INPUTS = {"Resize": (1, 2)}


def typed(content: bytes, precision: Precision) -> bytes:
    """The ONNX model ``content`` (float32) with a body in ``precision``; input and output stay float32.

    "fp32" only undoes float16 storage. Raises ModelError for a weight beyond the type's range.
    """
    model = onnx.load_model_from_string(content)
    _unpack_stored_weights(model.graph)
    if already := _body(model.graph):
        if already != precision:
            raise ModelError(
                f"its graph is typed {already} already; export it with --precision fp32 to choose at build"
            )
        return content
    if precision == "bf16" and model.opset_import[0].version < BFLOAT16_OPSET:
        model = onnx.version_converter.convert_version(model, BFLOAT16_OPSET)
    if precision != "fp32":
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        _Converter(model.graph, precision).convert()
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _body(graph: onnx.GraphProto) -> str:
    """The precision of a graph that was typed before, "" for a float32 one."""
    kinds = {item.data_type for item in graph.initializer}
    return next((name for name, (kind, _) in _TYPES.items() if kind in kinds), "")


def _unpack_stored_weights(graph: onnx.GraphProto) -> None:
    """Make ``fp16 initialiser -> Cast -> float32`` the float32 initialiser that it stands for, a Mul behind it too."""
    stored = {item.name: item for item in graph.initializer}
    kept = []
    for node in graph.node:
        weight = stored.get(node.input[0]) if node.input else None
        if weight is not None and node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
            values = numpy_helper.to_array(weight).astype(np.float32)
        elif weight is not None and node.op_type == "Mul" and node.input[1] in stored:
            scale = stored.pop(node.input[1])
            values = numpy_helper.to_array(weight) * numpy_helper.to_array(scale)
            graph.initializer.remove(scale)
        else:
            kept.append(node)
            continue
        del stored[node.input[0]]
        weight.CopyFrom(numpy_helper.from_array(values, node.output[0]))
        stored[weight.name] = weight
    del graph.node[:]
    graph.node.extend(kept)


class _Converter:
    """One pass over a graph: which type each tensor has, and the casts between the two."""

    def __init__(self, graph: onnx.GraphProto, precision: Precision) -> None:
        self.graph = graph
        self.onnx_type, self.numpy_type = _TYPES[precision]
        self.weights = {item.name: item for item in graph.initializer if item.data_type == TensorProto.FLOAT}
        described = [*graph.value_info, *graph.input, *graph.output]
        floats = {value.name for value in described if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.floats = floats | set(self.weights)
        self.narrow: set[str] = set()  # float tensors that now have the body's type
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[tuple[str, bool], str] = {}  # (tensor, narrow?) -> its name in that type

    def convert(self) -> None:
        outputs = {value.name for value in self.graph.output}
        last = set(_logit_layers(self.graph, outputs))
        for node in self.graph.node:
            wide = node.op_type in FLOAT32_OPERATORS or node.output[0] in last
            fixed = _FIXED_INPUTS.get(node.op_type, ())
            for place, name in enumerate(node.input):
                if name in self.floats:
                    node.input[place] = self._as(name, narrow=not wide and place not in fixed)
            if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT and not wide:
                node.attribute[0].i = self.onnx_type
            self.nodes.append(node)
            if not wide:
                self.narrow.update(name for name in node.output if name in self.floats)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.graph.node for name in node.input}
        kept = [item for item in self.graph.initializer if item.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _as(self, name: str, *, narrow: bool) -> str:
        """The name of tensor ``name`` in the wanted type; a weight is rounded, anything else gets a Cast, once."""
        if name in self.weights:
            return self._weight(name) if narrow else name
        if (name in self.narrow) == narrow:
            return name
        if (name, narrow) not in self.made:
            to = self.onnx_type if narrow else TensorProto.FLOAT
            made = f"{name}/{'narrow' if narrow else 'wide'}"
            self.nodes.append(helper.make_node("Cast", [name], [made], name=f"{made}/cast", to=to))
            self.made[name, narrow] = made
        return self.made[name, narrow]

    def _weight(self, name: str) -> str:
        if (name, True) not in self.made:
            values = numpy_helper.to_array(self.weights[name])
            with np.errstate(over="ignore"):
                rounded = values.astype(self.numpy_type)
            if not np.isfinite(rounded.astype(np.float32)).all():
                raise ModelError(
                    f"weight {name}: beyond the range of {self.numpy_type}; choose --precision bf16 or fp32"
                )
            self.graph.initializer.append(numpy_helper.from_array(rounded, f"{name}/narrow"))
            self.made[name, True] = f"{name}/narrow"
        return self.made[name, True]


def _logit_layers(graph: onnx.GraphProto, outputs: set[str]) -> Iterator[str]:
    """The first outputs of the nodes from the graph's outputs back to, and with, the last convolutions."""
    makers = {name: node for node in graph.node for name in node.output}
    waiting = list(outputs)
    seen: set[str] = set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        yield node.output[0]
        if node.op_type not in ("Conv", "ConvTranspose"):
            waiting.extend(node.input)
