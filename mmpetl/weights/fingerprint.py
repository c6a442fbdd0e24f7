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
    # Files and models list keys in different orders.
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        # Zero bytes cannot stand in names, so no two different lists give the same text.
        head = f'{key}\0{str(tensor.dtype).removeprefix("torch.")}\0{tuple(tensor.shape)}\0'
        digest.update(head.encode())
        # As bytes: -0.0 and 0.0, and NaNs, are told apart, and bfloat16 needs no numpy type.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b'')
    return digest.hexdigest()
