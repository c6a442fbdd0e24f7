# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters in the format of peft, for a base model of another library.

Two files, ``adapter_model.safetensors`` and ``adapter_config.json``, which ``peft.PeftModel.from_pretrained`` opens.
Where the other library fuses query, key and value into one linear layer, the updates of the parts become one update of
the whole: factors are stacked, ranks add up.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .archs import ALL_ARCHS
from .errors import WeightFileError
from .io import atomic_write, write_json

#: Suffixes of files, which no folder of weights has.
_FILES = ('.safetensors', '.pth', '.pt', '.bin', '.ckpt', '.onnx', '.npz', '.json', '.zip')
_FACTOR = re.compile(
    r'(?:.*\.)?petl\.(?P<name>[^.]+)\.blocks\.(?P<block>\d+)\.(?P<op>q|k|v|proj|fc1|fc2)\.'
    r'(?P<factor>(?:start_)?(?:down|up))')


def lora_to_peft(tensors: Mapping[str, torch.Tensor],
                 methods: list[dict[str, Any]],
                 arch: str,
                 library: str,
                 prefix: str = '',
                 base: str | None = None,
                 scales: Mapping[int, float] | None = None,
                 depths: Sequence[int] | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Translate the LoRA of an adapter file.

    Args:
        tensors (Mapping): Tensors of the adapter; those outside ``petl.`` (head, tuned base parameters) are not LoRA
            and are left to the caller.
        methods (list): ``header['methods']``.
        arch (str): One of :data:`mmpetl.weights.archs.ALL_ARCHS`.
        library (str): Library of the base model, see :class:`mmpetl.weights.arch.Arch`.
        prefix (str): What stands before the block names in the base model, 'vit.' in a ViTForImageClassification,
            'videomae.' in a VideoMAEForVideoClassification, 'vision_model.' in a CLIPVisionModelWithProjection.
        base (str | None): Name of the base model, noted in the config.
        scales (Mapping | None): Scale of each block's update; needed only where ``alpha`` differs between blocks.
        depths (Sequence | None): Blocks of each stage, for bases with stages (the Swins).

    Returns:
        tuple: Tensors with peft's names and its config.

    Raises:
        ValueError: Another method than one LoRA, an unknown pair, or a base on which peft has no effect.
    """
    block_name, modules = _modules(arch, library)
    method = _only_lora(methods)
    grouped: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    blocks: dict[str, int] = {}
    for key, tensor in tensors.items():
        # By name alone: this room knows no methods.
        match = _FACTOR.fullmatch(key)
        # A head, or tuned parameters, are not the LoRA's; anything else below petl. is a method that peft
        # has not.
        if match is None:
            if '.petl.' in f'.{key}':
                raise ValueError(f'{key}: not a factor of LoRA')
            continue
        # q, k and v of a fused layer come to the same module, and are joined below.
        block = block_name.format(*_place(int(match['block']), block_name, depths))
        module = f'{prefix}{block}.{modules[match["op"]]}'
        blocks[module] = int(match['block'])
        grouped.setdefault(module, {}).setdefault(match['op'], {})[match['factor']] = tensor
    if not grouped:
        raise ValueError('no factor of LoRA among the tensors')
    state, ranks, alphas = {}, {}, {}
    for module, ops in grouped.items():
        rank = next(iter(ops.values()))['down'].shape[0]
        down, up = _joined({op: _whole(f) for op, f in ops.items()}, fused=module.endswith('.qkv'))
        state[f'base_model.model.{module}.lora_A.weight'], state[f'base_model.model.{module}.lora_B.weight'] = down, up
        ranks[module], alphas[module] = down.shape[0], _scale(method, blocks[module], rank, scales) * down.shape[0]
    return state, peft_config(ranks, alphas, float(method.get('drop_rate', 0.)), base)


def _modules(arch: str, library: str) -> tuple[str, dict[str, str]]:
    """Name of a block and of the modules of its ops in a library.

    Raises:
        ValueError: An unknown pair, or a base on which peft has no effect.
    """
    known = ALL_ARCHS.get(arch)
    if known is not None and library in known.no_lora:
        raise ValueError(f'{arch} of {library} {known.no_lora[library]}')
    if known is None or library not in known.lora:
        raise ValueError(f'no peft export for {arch!r} of {library!r}; known for it: '
                         f'{", ".join(known.lora) if known and known.lora else "none"}')
    return known.lora[library]


def _place(block: int, name: str, depths: Sequence[int] | None) -> tuple[int, ...]:
    """What the name of a block is formatted with: its number, or its stage and its number there."""
    if name.count('{}') == 1:
        return (block, )
    if not depths or not block < sum(depths):
        raise ValueError(f'block {block} lies in no stage of depths={depths}: give the number of blocks of each stage')
    stage = 0
    while block >= depths[stage]:
        block, stage = block - depths[stage], stage + 1
    return stage, block


def _only_lora(methods: list[dict[str, Any]]) -> dict[str, Any]:
    others = [str(method.get('type')) for method in methods if str(method.get('type')).split('.')[-1] != 'LoRA']
    if others or len(methods) != 1:
        held = ', '.join(str(method.get('type')) for method in methods) or 'no method'
        raise ValueError(f'peft opens one LoRA; this adapter holds {held}: leave the others out, or keep the adapter '
                         'file')
    return methods[0]


def _whole(factors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Factors of the whole update: where a start is subtracted (PiSSA), it stands beside them, at twice the rank."""
    if 'start_down' not in factors:
        return dict(factors)
    return dict(down=torch.cat([factors['down'], factors['start_down']]),
                up=torch.cat([factors['up'], -factors['start_up']], 1))


def _joined(ops: dict[str, dict[str, torch.Tensor]], fused: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors A (r, Cin) and B (Cout, r) of one module; for a fused layer A is stacked and B has one block per part."""
    if not fused:
        (factors,) = ops.values()
        return factors['down'].contiguous(), factors['up'].contiguous()
    present = [op for op in 'qkv' if op in ops]
    down = torch.cat([ops[op]['down'] for op in present])
    # Parts without a LoRA keep rows of zeros.
    none = down.new_zeros(len(ops[present[0]]['up']), 0)
    return down, torch.block_diag(*(ops[op]['up'] if op in ops else none for op in 'qkv'))


def _scale(method: Mapping[str, Any], block: int, rank: int, scales: Mapping[int, float] | None) -> float:
    """Scale of a block's update: alpha / rank, or alpha / sqrt(rank) (rsLoRA); 1 without alpha."""
    if scales is not None:
        return float(scales[block])
    alpha = method.get('alpha')
    if alpha is None:
        return 1.
    if not isinstance(alpha, (int, float)):
        raise ValueError(f'alpha={alpha!r} differs between blocks: give the scale of each block')
    return alpha / (rank**0.5 if method.get('rank_stabilized') else rank)


def peft_config(ranks: Mapping[str, int], alphas: Mapping[str, float], dropout: float,
                base: str | None) -> dict[str, Any]:
    """peft's config of a LoRA.

    Args:
        ranks, alphas (Mapping): Module -> rank and numerator of its scale.
        dropout (float): Dropout on the input of the branch.
        base (str | None): Name of the base model.
    """
    rank, alpha = max(ranks.values()), max(alphas.values())
    return dict(
        peft_type='LORA',
        task_type=None,
        base_model_name_or_path=base,
        inference_mode=True,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias='none',
        fan_in_fan_out=False,
        init_lora_weights=True,
        modules_to_save=None,
        target_modules=sorted(ranks),
        rank_pattern={
            module: value
            for module, value in ranks.items() if value != rank
        },
        alpha_pattern={
            module: value
            for module, value in alphas.items() if value != alpha
        })


def check_folder(folder: str, library: str) -> None:
    """Check the name of an export that is a folder.

    Raises:
        WeightFileError: It is a file, or is called like one.
    """
    suffix = os.path.splitext(folder)[1].lower()
    if os.path.isfile(folder) or suffix in _FILES:
        what = 'a file' if os.path.isfile(folder) else f'{suffix} names a file'
        raise WeightFileError(folder, f'{what}, and exports for {library} are folders', 'name a folder')


def write_peft(folder: str | os.PathLike[str], state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Write the two files of a peft adapter, each atomically.

    Raises:
        WeightFileError: ``folder`` is a file, or is called like one.
    """
    from safetensors.torch import save
    folder = os.path.expanduser(os.fspath(folder))
    check_folder(folder, 'peft')
    data = save({key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}, {'format': 'pt'})
    atomic_write(os.path.join(folder, 'adapter_model.safetensors'), lambda file: file.write(data))
    write_json(os.path.join(folder, 'adapter_config.json'), json.loads(json.dumps(config)))
