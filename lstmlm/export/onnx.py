"""A model as an ONNX graph whose state goes in and out, for a token at a time or a segment of any length.

    tokens (T, B) int64, h (L, B, H), c (L, B, H)  ->  logits (T, B, V), new_h (L, B, H), new_c (L, B, H)

H is the largest layer's size. A smaller layer uses the first units of its row, and the others stay 0.

The graph is written out here, with ONNX's own LSTM: PyTorch's exporter needs a quarter of a minute and warns of its own future.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lstmlm.console import check, need
from lstmlm.files import OutputFolder
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.model.pretrained import VOCABULARY, find_model, load

GRAPH = "model.onnx"
LARGEST = 2**31 - 2**20  # bytes of a model's weights: protobuf holds 2 GiB
OPSET, IR_VERSION = 17, 8  # of 2022, so that older runtimes read it


def export_onnx(model: str | Path | None, folder: str | Path) -> None:
    """Write `model.onnx` and `vocab.json` of the model that `find_model` finds; a text begins with a zero state and the token `<eos>`.

    Raises:
        UserError: The model cannot be read or is too large for ONNX, or onnx is not installed.
    """
    source = find_model(model)
    output = OutputFolder(folder, (GRAPH, VOCABULARY), again=GRAPH, source=source)
    need("--to onnx", "export", "onnx")
    saved = load(source, device="cpu")
    size = sum(parameter.nbytes for parameter in saved.model.parameters())
    check(size <= LARGEST, f"the weights have {size:,} bytes, and one ONNX file holds {LARGEST:,}: export with --to transformers")
    output.write({GRAPH: build_graph(saved.model).SerializeToString(), VOCABULARY: saved.vocabulary.to_bytes()})


def build_graph(model: LSTMLanguageModel) -> Any:
    """The graph of a model, checked by ONNX."""
    from onnx import TensorProto, checker, helper, numpy_helper

    node, info, float32 = helper.make_node, helper.make_tensor_value_info, TensorProto.FLOAT
    layers, sizes = model.config.num_layers, model.config.layer_sizes
    constants: dict[str, NDArray[Any]] = {
        "embedding": _array(model.embedding.weight),
        "bias": _array(model.decoder.bias),
        "direction": np.array([1]),  # axis of the directions in an LSTM's output
        "first": np.array([0]),
        "units": np.array([2]),  # axis of a layer's state
    }
    nodes = [node("Gather", ["embedding", "tokens"], ["outputs_0"])]  # (T, B, E)
    nodes += [node("Split", [name], [f"{name}_{i}_wide" for i in range(layers)], axis=0) for name in "hc"]  # (1, B, H) each
    for i, (layer, size) in enumerate(zip(model.layers, sizes, strict=True)):
        own = dict(layer.named_parameters())
        constants[f"input_{i}"] = _gates(own["weight_ih_l0"])[None]  # (1, 4 H, E)
        constants[f"recurrent_{i}"] = _gates(own["weight_hh_l0"])[None]  # (1, 4 H, H)
        constants[f"biases_{i}"] = np.concatenate([_gates(own["bias_ih_l0"]), _gates(own["bias_hh_l0"])])[None]
        constants[f"size_{i}"] = np.array([size])
        constants[f"padding_{i}"] = np.array([0, 0, 0, 0, 0, max(sizes) - size])
        weights, states = [f"{kind}_{i}" for kind in ("input", "recurrent", "biases")], [f"h_{i}", f"c_{i}"]
        nodes += [
            *(node("Slice", [f"{s}_wide", "first", f"size_{i}", "units"], [s]) for s in states),
            node("LSTM", [f"outputs_{i}", *weights, "", *states], [f"directed_{i}", *(f"own_{s}" for s in states)], hidden_size=size),
            *(node("Pad", [f"own_{s}", f"padding_{i}"], [f"new_{s}"]) for s in states),
            node("Squeeze", [f"directed_{i}", "direction"], [f"outputs_{i + 1}"]),  # (T, B, H)
        ]
    if model.config.tie_weights:
        nodes.append(node("Transpose", ["embedding"], ["decoder"], perm=[1, 0]))
    else:
        constants["decoder"] = _array(model.decoder.weight).T
    nodes += [
        node("MatMul", [f"outputs_{layers}", "decoder"], ["products"]),
        node("Add", ["products", "bias"], ["logits"]),  # (T, B, V)
        *(node("Concat", [f"new_{name}_{i}" for i in range(layers)], [f"new_{name}"], axis=0) for name in "hc"),
    ]
    state = [layers, "B", max(sizes)]
    graph = helper.make_graph(
        nodes,
        "lstmlm",
        [info("tokens", TensorProto.INT64, ["T", "B"]), info("h", float32, state), info("c", float32, state)],
        [info("logits", float32, ["T", "B", model.vocab_size]), info("new_h", float32, state), info("new_c", float32, state)],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, producer_name="lstmlm", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    checker.check_model(made)
    return made


def _gates(weight: Tensor) -> NDArray[Any]:
    """PyTorch's gates (input, forget, cell, output) in ONNX's order (input, output, forget, cell)."""
    i, f, g, o = np.split(_array(weight), 4)
    return np.concatenate([i, o, f, g])


def _array(weight: Tensor) -> NDArray[Any]:
    return weight.detach().cpu().numpy()
