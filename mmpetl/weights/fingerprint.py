# SPDX-License-Identifier: Apache-2.0
"""One number that says which weights these are."""

import hashlib
from collections.abc import Mapping

import torch


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the sorted (key, dtype, shape, bytes) of a state dict.

    The device, memory layout and order of the keys do not matter; one changed bit, shape, type or name does.

    Args:
        tensors (Mapping[str, Tensor]): A state dict. Dense tensors of any type.

    Returns:
        str: 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        head = f'{key}\0{str(tensor.dtype).removeprefix("torch.")}\0{tuple(tensor.shape)}\0'
        digest.update(head.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b'')
    return digest.hexdigest()
