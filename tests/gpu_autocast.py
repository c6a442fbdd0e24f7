# SPDX-License-Identifier: Apache-2.0
"""Autocast as GPUs have it, on a CPU: there norms, sums, powers and the like give float32 whatever comes in, here they
keep bfloat16. What reads them meets other types there."""

from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_T = torch.Tensor
#: Of torch's list of what CUDA's autocast runs in float32, what models use; by each name that Python has for it.
_NAMES = ('softmax', 'log_softmax', 'sum', 'prod', 'cumsum', 'cumprod', 'exp', 'expm1', 'log', 'log1p', 'log2', 'log10',
          'pow', '__pow__', '__rpow__', '__rtruediv__', '__rdiv__', 'reciprocal', 'rsqrt', 'renorm', 'dist', 'norm',
          'logsumexp', 'layer_norm', 'native_layer_norm', 'rms_norm', 'group_norm', 'softplus', 'cosine_similarity',
          'normalize', 'cross_entropy', 'nll_loss', 'mse_loss', 'l1_loss', 'smooth_l1_loss', 'huber_loss', 'kl_div',
          'binary_cross_entropy_with_logits')
WIDE = {getattr(place, name) for name in _NAMES for place in (torch, _T, F) if hasattr(place, name)}
WIDE |= {torch.linalg.vector_norm, torch.linalg.norm, torch.linalg.matrix_norm}
#: What is widened to the widest type of its arguments by casts.
PROMOTED = {torch.addcmul, _T.addcmul, torch.addcdiv, _T.addcdiv, torch.tensordot, torch.dot, _T.dot, F.grid_sample,
            torch.index_put, _T.index_put, torch.scatter_add, _T.scatter_add}
_HALF = (torch.bfloat16, torch.float16)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value


class GpuAutocast(TorchFunctionMode):
    """While it is entered, autocast of the CPU has a GPU's lists."""

    def __torch_function__(self, func: Any, types: Any, args: Tuple[Any, ...] = (),
                           kwargs: Optional[Dict[str, Any]] = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_autocast_enabled('cpu') or 'out' in kwargs or func not in WIDE and func not in PROMOTED:
            return func(*args, **kwargs)
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        if func in WIDE or any(t.dtype is torch.float32 for t in tensors):
            args, kwargs = tree_map(_float, (args, kwargs))
        with torch.autocast('cpu', enabled=False):
            return func(*args, **kwargs)
