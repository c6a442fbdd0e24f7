# SPDX-License-Identifier: Apache-2.0
"""Models as ONNX graphs, checked against the model they were made from."""

import contextlib
import io
import os
import re
import tempfile
import warnings
from typing import Any

import torch
from torch import nn

from .errors import WeightFileError
from .io import atomic_write


class _LastOutput(nn.Module):
    """OpenMMLab backbones return a tuple with one entry per output; a graph wants the last one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.module(x)
        # out_indices: the last output is the deepest.
        return y[-1] if isinstance(y, (tuple, list)) else y


def to_onnx(module: nn.Module, example: torch.Tensor, path: str | os.PathLike[str], tolerance: float | None = 1e-4,
            dynamic_batch: bool = True) -> float:
    """Export a module by torch's dynamo exporter and compare the graph, run by onnxruntime, with the module.

    Args:
        module (nn.Module): Takes one tensor. Put it into evaluation mode first.
        example (Tensor): (B, ...), on the CPU. The comparison uses it and noise of the same shape.
        path (str | PathLike): ``*.onnx``; weights above 2 GB do not fit into one such file.
        tolerance (float | None): Largest difference allowed, relative to the largest output; None skips the comparison.
        dynamic_batch (bool): Let the graph take any batch size; falls back to the example's where the model fixes it.

    Returns:
        float: Largest absolute difference; NaN without comparison.

    Raises:
        WeightFileError: A module in training mode, a failing export, or a graph that computes something else; nothing
            is written.
    """
    path = os.fspath(path)
    # Dropout would be in the graph for ever.
    if module.training:
        raise WeightFileError(path, 'the model is in training mode', 'call model.train(False) first')
    wrapped = _LastOutput(module)
    wrapped.train(False)
    # Window masks and the like, which a model makes once per shape and keeps, must not be made while the exporter
    # traces: what it keeps then is no data.
    with torch.no_grad():
        wrapped(example)
    # Attention takes another kernel where weights train, with other strides than the exporter meets when it decomposes.
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    try:
        wrapped.requires_grad_(False)
        data = _exported(wrapped, example, path, dynamic_batch)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    difference = float('nan') if tolerance is None else 0.
    # On the example alone, a value that the exporter froze into the graph would go unnoticed.
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    for x in () if tolerance is None else (example, noise):
        with torch.no_grad():
            want = wrapped(x)
        difference = max(difference, float((_run(data, x) - want).abs().max()))
        # Written so that NaN fails too.
        if not difference <= (tolerance or 0.) * max(1., float(want.abs().max())):
            raise WeightFileError(path, f'the exported graph differs from the model by {difference:.1e}',
                                  'report the model that shows it')
    atomic_write(path, lambda file: file.write(data))
    return difference


def _exported(module: nn.Module, example: torch.Tensor, path: str, dynamic_batch: bool) -> bytes:
    """Bytes of the graph, weights inside."""
    options: list[dict[str, Any]] = [{
        'dynamic_shapes': {
            'x': {
                0: 'batch'
            }
        }
    }] if dynamic_batch and example.shape[0] > 1 else []
    error: Exception | None = None
    # A model that fixes its batch size is exported for the example's, rather than not at all.
    for option in [*options, {}]:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(
                    io.StringIO()), tempfile.TemporaryDirectory() as folder:
                warnings.simplefilter('ignore')
                target = os.path.join(folder, 'model.onnx')
                torch.onnx.export(
                    module, (example, ),
                    target,
                    input_names=['x'],
                    output_names=['y'],
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                    **option)
                with open(target, 'rb') as file:
                    return file.read()
        except Exception as caught:  # the exporter raises many types, most with long reports
            error = caught
    cause = error.__cause__ or error
    text = re.sub(r'\x1b\[\d*m', '', str(cause)).strip().splitlines() or ['']
    raise WeightFileError(path, f'cannot be exported: {type(cause).__name__}: {text[0][:200]}',
                          'merge the adapter first') from None


def _run(data: bytes, example: torch.Tensor) -> torch.Tensor:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    # Errors only.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: example.cpu().numpy()})[0])
