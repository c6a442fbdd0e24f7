# SPDX-License-Identifier: Apache-2.0
"""Weights out of ONNX graphs, under the names of the publisher's own state dict.

An export keeps parameters as initialisers. Those that enter an operator unchanged keep their names; the matrices of
linear layers are stored transposed under anonymous names and are found through the names of the nodes that use them.
Only the graph is read; nothing is executed and no external data file is followed.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .errors import WeightFileError


class Graph:
    """An ONNX graph: its initialisers and constants as arrays, its nodes by name.

    Args:
        path (str | PathLike): The ``.onnx`` file.

    Raises:
        FileNotFoundError: No such file.
        WeightFileError: Not ONNX, damaged, or with weights in another file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f'{self.path}: no such weight file')
        try:
            # An external file would be a path out of the graph.
            graph = onnx.load(self.path, load_external_data=False).graph
        except (DecodeError, ValueError, OSError) as error:
            raise WeightFileError(self.path, f'not an ONNX file: {error}', 'download it again') from None
        if any(item.data_location == onnx.TensorProto.EXTERNAL for item in graph.initializer):
            raise WeightFileError(self.path, 'keeps its weights in another file',
                                  'give an ONNX file that holds its weights')
        self.nodes: list[Any] = list(graph.node)
        try:
            self.arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
            for node in self.nodes:
                # Some exporters keep weights as constants.
                if node.op_type == 'Constant' and node.attribute and node.attribute[0].HasField('t'):
                    self.arrays[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        except (ValueError, TypeError) as error:
            raise WeightFileError(self.path, f'damaged ONNX tensor: {error}', 'download it again') from None
        for node in self.nodes:  # exporters merge equal tensors and leave an alias behind
            if node.op_type == 'Identity' and node.input[0] in self.arrays:
                self.arrays[node.output[0]] = self.arrays[node.input[0]]

    def inputs(self, node: Any) -> list[np.ndarray]:
        """Arrays among the inputs of a node."""
        return [self.arrays[name] for name in node.input if name in self.arrays]


    def linears(self) -> Iterator[tuple[str, np.ndarray]]:
        """Module path and weight (out, in) of every linear layer, float or int8.

        An int8 weight is stored as (in, out) with a scale and a zero point per output channel: (q - zero_point) *
        scale.
        """
        for node in self.nodes:
            arrays = self.inputs(node)
            if node.op_type == 'MatMul' and node.name.endswith('/MatMul') and arrays:
                yield _module(node.name.removesuffix('/MatMul')), arrays[0].T
            # Dynamic quantisation writes int8 products under the layer's own name.
            elif node.op_type == 'MatMulInteger' and node.name.endswith('/MatMul_quant') and arrays:
                # Scale and zero point stand beside it under the same stem.
                base = node.input[1].removesuffix('_quantized')
                if f'{base}_scale' not in self.arrays:
                    raise WeightFileError(self.path, f'no scale for the int8 matrix {base}',
                                          'export with per-channel scales')
                zero = self.arrays.get(f'{base}_zero_point', np.zeros((), np.int8)).astype(np.float32)
                weight = (arrays[0].astype(np.float32) - zero) * self.arrays[f'{base}_scale']
                yield _module(node.name.removesuffix('/MatMul_quant')), weight.T


def _module(node_name: str) -> str:
    """``/blocks/blocks.0/attn/qkv`` -> ``blocks.0.attn.qkv``: exporters write the container and then its numbered
    member."""
    parts = node_name.strip('/').split('/')
    kept = [part for part, following in zip(parts, [*parts[1:], '']) if not following.startswith(f'{part}.')]
    return '.'.join(kept)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32, order='C', copy=True))


def dinov2_from_onnx(path: str | os.PathLike[str], prefix: str = 'model.') -> 'OrderedDict[str, torch.Tensor]':
    """Read a DINOv2 image encoder exported with torch's exporter.

    Args:
        path (str | PathLike): The ``.onnx`` file.
        prefix (str): What the exporter put before the published names.

    Returns:
        OrderedDict[str, Tensor]: fp32, names as in facebookresearch/dinov2 (``blocks.0.attn.qkv.weight``,
        ``ls1.gamma``, ...), ``pos_embed`` (1, 1 + H * W, C) on the grid of pre-training.

    Raises:
        WeightFileError: A graph that is not such an export.
    """
    graph = Graph(path)
    named = {key.removeprefix(prefix): value for key, value in graph.arrays.items() if key.startswith(prefix)}
    state = OrderedDict((key, _tensor(value)) for key, value in named.items())
    state.update((f'{module.removeprefix(prefix)}.weight', _tensor(weight)) for module, weight in graph.linears())
    if 'cls_token' not in state or 'blocks.0.attn.qkv.weight' not in state:
        raise WeightFileError(path, 'no DINOv2 encoder in this graph', 'give a torch export of facebookresearch/dinov2')
    if 'pos_embed' not in state:
        state['pos_embed'] = _positions(graph, state['cls_token'])
    return state


def clip_visual_from_onnx(path: str | os.PathLike[str]) -> 'OrderedDict[str, torch.Tensor]':
    """Read the image tower of a CLIP model exported from Hugging Face transformers, float or dynamically quantised to
    int8.

    Returns:
        OrderedDict[str, Tensor]: fp32, Hugging Face names (``vision_model.encoder.layers.0.self_attn.q_proj.weight``,
        ...) and, if present, ``visual_projection.weight`` (embedding, C). Int8 weights are de-quantised; what rounding
        took is lost.

    Raises:
        WeightFileError: A graph that is not such an export.
    """
    graph = Graph(path)
    state = OrderedDict((key, _tensor(value)) for key, value in graph.arrays.items() if key.startswith('vision_model.'))
    state.update((f'{module}.weight', _tensor(weight)) for module, weight in graph.linears())
    if not {'vision_model.pre_layrnorm.weight', 'vision_model.encoder.layers.0.self_attn.q_proj.weight'} <= set(state):
        raise WeightFileError(path, 'no CLIP image tower in this graph',
                              'give an export of a Hugging Face CLIP vision model')
    return state


def _positions(graph: Graph, cls_token: torch.Tensor) -> torch.Tensor:
    """Join the class position and the patch grid, which the export keeps apart.

    The class position is the array joined to the resized grid by a Concat; in published files it equals the class token
    bit by bit, so that the exporter stores it as an alias of that.
    """
    dim = cls_token.shape[-1]
    for node in graph.nodes:
        found = [
            array for array in graph.inputs(node) if array.ndim == 3 and array.shape[-1] == dim and array.shape[1] > 1
        ]
        # The table is made a map before it is resized: that is where the graph reads it.
        if node.op_type == 'Reshape' and found:
            grid = _tensor(found[0])
            break
    else:
        raise WeightFileError(graph.path, 'no position table in this graph', 'export the model with its pos_embed')
    joins = [graph.inputs(node) for node in graph.nodes if node.op_type == 'Concat']
    heads = [arrays[0] for arrays in joins if len(arrays) == 1 and arrays[0].shape == (1, 1, dim)]
    if not heads:
        raise WeightFileError(graph.path, 'no position of the class token in this graph',
                              'export the model with its pos_embed')
    return torch.cat([_tensor(heads[-1]), grid], dim=1)
