"""A model as an ONNX graph whose state goes in and out, for a token at a time or a segment of any length.

    tokens (T, B) int64, h (L, B, H), c (L, B, H)  ->  logits (T, B, V), new_h (L, B, H), new_c (L, B, H)

H is the largest layer's size. A smaller layer uses the first units of its row, and the others stay 0.

The graph is written out here, with ONNX's own LSTM: PyTorch's exporter needs a quarter of a minute and warns of its own future.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lstmlm.console import UserError
from lstmlm.files import OutputFolder
from lstmlm.model.language_model import LSTMLanguageModel
from lstmlm.model.pretrained import VOCABULARY, load, model_folder

GRAPH = "model.onnx"
OPSET, IR_VERSION = 17, 8  # of 2022, so that older runtimes read it


def export_onnx(model: str | Path, folder: str | Path) -> None:
    """Write `model.onnx` and `vocab.json`; a text begins with a zero state and the token `<eos>`.

    Args:
        model: As for `model_folder`.
        folder: Made where it does not exist.

    Raises:
        UserError: The model cannot be read, or onnx is not installed.
    """
    if find_spec("onnx") is None:
        raise UserError("onnx is not installed: pip install onnx")
    source = model_folder(model)
    output = OutputFolder(folder, (GRAPH, VOCABULARY), again=GRAPH, kept=[source])
    saved = load(source, device="cpu")
    language_model, vocabulary = saved.model, saved.vocabulary
    content = build_graph(language_model).SerializeToString()
    output.write({GRAPH: content, VOCABULARY: vocabulary.to_bytes()})


def build_graph(model: LSTMLanguageModel) -> Any:
    """The graph of a model, checked by ONNX."""
    from onnx import TensorProto, checker, helper, numpy_helper

    layers, sizes = model.config.num_layers, model.config.layer_sizes
    size = max(sizes)
    constants: dict[str, NDArray[Any]] = {
        "embedding": _array(model.embedding.weight),
        "bias": _array(model.decoder.bias),
        "direction": np.array([1], np.int64),  # axis of the directions in an LSTM's output
        "first": np.array([0], np.int64),
        "units": np.array([2], np.int64),  # axis of a layer's state
    }
    nodes = [helper.make_node("Gather", ["embedding", "tokens"], ["outputs_0"])]  # (T, B, E)
    for i, layer in enumerate(model.layers):
        own = dict(layer.named_parameters())
        own_size, states = sizes[i], [f"h_{i}", f"c_{i}"]
        constants[f"place_{i}"] = np.array([i], np.int64)
        constants[f"input_{i}"] = _gates(own["weight_ih_l0"])[None]  # (1, 4 H, E)
        constants[f"recurrent_{i}"] = _gates(own["weight_hh_l0"])[None]  # (1, 4 H, H)
        constants[f"biases_{i}"] = np.concatenate([_gates(own["bias_ih_l0"]), _gates(own["bias_hh_l0"])])[None]
        weights = [f"{kind}_{i}" for kind in ("input", "recurrent", "biases")]
        nodes += [
            *(helper.make_node("Gather", [s[0], f"place_{i}"], [f"{s}_wide"], axis=0) for s in states),  # (1, B, H)
            *(helper.make_node("Slice", [f"{s}_wide", "first", f"size_{i}", "units"], [s]) for s in states),
            helper.make_node(
                "LSTM", [f"outputs_{i}", *weights, "", *states], [f"directed_{i}", *(f"own_{s}" for s in states)], hidden_size=own_size
            ),
            *(helper.make_node("Pad", [f"own_{s}", f"padding_{i}"], [f"new_{s}"]) for s in states),
            helper.make_node("Squeeze", [f"directed_{i}", "direction"], [f"outputs_{i + 1}"]),  # (T, B, H)
        ]
        constants[f"size_{i}"] = np.array([own_size], np.int64)
        constants[f"padding_{i}"] = np.array([0, 0, 0, 0, 0, size - own_size], np.int64)
    if model.config.tie_weights:
        nodes.append(helper.make_node("Transpose", ["embedding"], ["decoder"], perm=[1, 0]))
    else:
        constants["decoder"] = _array(model.decoder.weight).T
    nodes += [
        helper.make_node("MatMul", [f"outputs_{layers}", "decoder"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["logits"]),  # (T, B, V)
        *(helper.make_node("Concat", [f"new_{name}_{i}" for i in range(layers)], [f"new_{name}"], axis=0) for name in ("h", "c")),
    ]
    state = [layers, "B", size]
    graph = helper.make_graph(
        nodes,
        "lstmlm",
        [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["T", "B"]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, state) for name in ("h", "c")),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["T", "B", model.vocab_size]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, state) for name in ("new_h", "new_c")),
        ],
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
