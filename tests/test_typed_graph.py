"""Typed graphs: a narrow body, float32 where it matters, and the same answers within the type's precision."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from dropgen_rt import open_named
from dropgen_rt.engines.choose import create
from dropgen_rt.errors import ModelError
from dropgen_rt.model import model_of
from dropgen_rt.typed_graph import BFLOAT16_OPSET, typed
from dropgen_rt.verify import golden_of

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def packaged():
    return open_named("brain9")


def types_of(content):
    """The element type of every tensor of a graph, by ONNX's own inference."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content), strict_mode=True).graph
    found = {item.name: item.data_type for item in graph.initializer}
    described = (*graph.value_info, *graph.input, *graph.output)
    return graph, found | {value.name: value.type.tensor_type.elem_type for value in described}


@pytest.mark.parametrize("precision", TYPES)
def test_what_is_narrow_and_what_stays_float32(packaged, precision):
    graph, types = types_of(typed(packaged.content, precision))
    assert [types[value.name] for value in (*graph.input, *graph.output)] == [TensorProto.FLOAT] * 2
    of = {node.output[0]: types[node.output[0]] for node in graph.node}
    layers = [node for node in graph.node if node.op_type == "Conv"]
    last = [node for node in layers if node.output[0] == graph.output[0].name]
    assert len(last) == 1 and {types[name] for name in last[0].input} == {TensorProto.FLOAT}
    assert {of[node.output[0]] for node in layers if node not in last} == {TYPES[precision]}
    (norm,) = [node for node in graph.node if node.op_type == "InstanceNormalization"]
    assert {types[name] for name in (*norm.input, *norm.output)} == {TensorProto.FLOAT}
    for node in graph.node:
        if node.op_type == "Resize":
            assert types[node.input[0]] == TYPES[precision] and types[node.input[2]] == TensorProto.FLOAT
    assert len(typed(packaged.content, precision)) < 0.52 * len(typed(packaged.content, "fp32"))


def test_fp16_gives_the_same_answers(packaged):
    windows = np.ascontiguousarray(golden_of(packaged).windows[:1])  # of a real head, carried in the model
    expected = InferenceSession(packaged.content).run(None, {"image": windows})[0]
    logits = InferenceSession(typed(packaged.content, "fp16")).run(None, {"image": windows})[0]
    error = np.abs(logits - expected).max() / np.ptp(expected)
    assert 0 < error < 5e-3  # 2^-11 a layer, some forty layers
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.998


def test_bf16_gives_the_same_answers(packaged, tmp_path):
    """OpenVINO reads it; in fp32 arithmetic where this CPU has no other, so only the weights' rounding is sure."""
    content = typed(packaged.content, "bf16")
    assert onnx.load_model_from_string(content).opset_import[0].version == BFLOAT16_OPSET
    windows = np.ascontiguousarray(golden_of(packaged).windows[:1])  # of a real head, carried in the model
    expected = InferenceSession(packaged.content).run(None, {"image": windows})[0]
    from dropgen_rt.engines.openvino_engine import supported_precisions

    precision = "bf16" if "bf16" in supported_precisions() else "fp32"
    with create(model_of(tmp_path / "bf16.onnx", content), "openvino", precision, "cpu") as engine:
        error = np.abs(engine.infer(windows) - expected).max() / np.ptp(expected)
    assert 0 < error < 5e-2  # 2^-8 a layer


def test_stored_half_weights_become_what_they_stand_for(tiny):
    proto = onnx.load_model_from_string(tiny.onnx({}))
    weights = numpy_helper.to_array(proto.graph.initializer[0])
    half = numpy_helper.from_array(weights.astype(np.float16), "weights.fp16")
    proto.graph.initializer[0].CopyFrom(half)
    cast = helper.make_node("Cast", ["weights.fp16"], ["weights"], to=TensorProto.FLOAT)
    nodes = [cast, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    graph = onnx.load_model_from_string(typed(proto.SerializeToString(), "fp32")).graph
    assert Counter(node.op_type for node in graph.node) == {"Conv": 1}
    assert np.array_equal(numpy_helper.to_array(graph.initializer[0]), weights)


def test_a_graph_typed_before_keeps_its_type(packaged):
    content = typed(packaged.content, "fp16")
    assert typed(content, "fp16") == content
    with pytest.raises(ModelError, match="its graph is typed fp16 already; export it with --precision fp32"):
        typed(content, "bf16")


def two_layers(weight):
    """image -> Conv (1 x 1 x 1) -> Conv -> logits, so that the first is in the narrow body."""
    shape = ["batch", 1, 4, 4, 4]
    values = numpy_helper.from_array(np.full((1, 1, 1, 1, 1), weight, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["a"]), helper.make_node("Conv", ["a", "w"], ["logits"])],
        "two",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [values],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return proto.SerializeToString()


def test_a_weight_beyond_float16_is_refused_not_clamped():
    with pytest.raises(ModelError, match="weight w: beyond the range of float16; choose --precision bf16 or fp32"):
        typed(two_layers(1e6), "fp16")
    _, types = types_of(typed(two_layers(1e6), "bf16"))
    assert types["w/narrow"] == TensorProto.BFLOAT16 and types["w"] == TensorProto.FLOAT
