"""Names that a person can read, and no trace of the machine that exported."""

from collections import Counter

import onnx


def tidy(model: onnx.ModelProto) -> None:
    """Name nodes and tensors after the layer they belong to (``encoder/3/conv``), and drop all other metadata."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    layers = _layers(graph)
    renamed: dict[str, str] = {}
    used: Counter[str] = Counter()
    for node, layer in zip(graph.node, layers, strict=True):
        base = f"{layer}/{node.op_type.lower()}"
        used[base] += 1
        node.name = base if used[base] == 1 else f"{base}_{used[base]}"
        for place, name in enumerate(node.output):
            if name and name not in outputs:
                renamed[name] = node.name if place == 0 else f"{node.name}:{place}"
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        del node.metadata_props[:]
        node.doc_string = ""
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)
    for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del value.metadata_props[:]
    drop_dead(graph)


def _layers(graph: onnx.GraphProto) -> list[str]:
    """Of each node the layer: a convolution's from its weight's name, what follows belongs to it, padding to the next.

    The tracer forgets in which module a call was made; the weights remember.
    """
    kernels = {item.name for item in graph.initializer if item.name.endswith(".weight")}
    own = [next((_short(name) for name in node.input if name in kernels), "") for node in graph.node]
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output}
    for place, node in enumerate(graph.node):
        before = [own[makers[name]] for name in node.input if name in makers and own[makers[name]]]
        if not own[place] and node.op_type != "Pad" and before:
            own[place] = before[0]
    for place in reversed(range(len(own))):
        after = [own[user] for user, node in enumerate(graph.node) if set(graph.node[place].output) & set(node.input)]
        own[place] = own[place] or next((layer for layer in after if layer), "fusion")
    return own


def _short(weight: str) -> str:
    """``segmentor/7`` of ``segmentor.model.7.weight``."""
    return weight.removesuffix(".weight").replace(".model.", "/").replace(".", "/")


def drop_dead(graph: onnx.GraphProto) -> None:
    """Remove nodes and weights that no output needs."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed.update(node.input)
            kept.append(node)
    weights = [item for item in graph.initializer if item.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)
    known = [value for value in graph.value_info if value.name in needed]
    del graph.value_info[:]
    graph.value_info.extend(known)
