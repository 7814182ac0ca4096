"""Convolution kernels stored as float16 inside the file, computed with as float32: half the size, one function.

Storage only. A ``Cast`` behind each kernel gives every engine the same float32 numbers, so what it computes does not
depend on its own reduced-precision rules. Biases are small and stay float32. Kernels are rounded before batch norms are
folded into them, and what folding multiplies them by is stored beside them: an encoder that was float16 before stays
exactly what it was.
"""

import copy
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from dropgen_rt.errors import VerificationError

# A kernel has an output and an input axis; biases and other vectors have one axis.
KERNEL_AXES = 2

Network = TypeVar("Network", bound=nn.Module)


def round_kernels(network: Network) -> Network:
    """A copy of ``network`` whose kernels are rounded to float16 and held as float32.

    Raises VerificationError for a weight beyond float16's range (65504).
    """
    rounded = copy.deepcopy(network)
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if weight.ndim >= KERNEL_AXES:
                weight.copy_(weight.half().float())
                if not torch.isfinite(weight).all():
                    raise VerificationError(f"{name}: a weight is beyond 65504, float16's largest; use --weights fp32")
    return rounded


def store_half(model: onnx.ModelProto, scales: Mapping[str, Tensor]) -> None:
    """Replace each float32 kernel of the graph by its float16 form, a Cast and, where ``scales`` has one, a Mul.

    ``scales`` are those of ``folding_scales``. Exact if kernels were rounded before they were multiplied by them.
    """
    graph = model.graph
    kernels = [item for item in graph.initializer if item.data_type == TensorProto.FLOAT and _is_kernel(item)]
    nodes = []
    for kernel in kernels:
        name, stored = kernel.name, f"{kernel.name}.fp16"
        values = numpy_helper.to_array(kernel)
        if name not in scales:
            nodes.append(helper.make_node("Cast", [stored], [name], name=f"{name}/cast", to=TensorProto.FLOAT))
        else:
            wide, scale = f"{name}.fp32", scales[name].numpy().reshape(-1, *[1] * (values.ndim - 1))
            values = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
            nodes.append(helper.make_node("Cast", [stored], [wide], name=f"{name}/cast", to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [wide, f"{name}.scale"], [name], name=f"{name}/scale"))
        kernel.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)


def _is_kernel(item: TensorProto) -> bool:
    return len(item.dims) >= KERNEL_AXES
