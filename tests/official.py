# SPDX-License-Identifier: Apache-2.0
"""Random weights and tiny data in the layouts of the official files and archives, for running what recipes print.

The layouts are written from the official files, not from this package; only the sizes are small.
"""

import argparse
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import cv2
import numpy as np
import suite_data
import torch
from mmaction.models.backbones import mvit as mmaction_mvit
from mmaction.models.backbones.uniformerv2 import UniFormerV2
from mmpretrain.models import DeiT3, MViT, SwinTransformerV2, ViTEVA02
from small_backbones import MM
from torch import Tensor, nn

from mmpetl.datasets.tables import get_task
from mmpetl.datasets.tables.video import VIDEO_SETS
from mmpetl.datasets.video_lists import write_video_list

#: Width, heads and blocks of the small transformers.
DIM, HEADS, DEPTH = 32, 2, 2
SWIN_DIM, SWIN_HEADS, SWIN_DEPTHS = 16, (1, 1, 2, 2), (1, 1, 1, 1)
_generator = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator) * 0.02


def norm(prefix: str, dim: int) -> Dict[str, Tensor]:
    return {f'{prefix}.weight': 1 + draw(dim), f'{prefix}.bias': draw(dim)}


def linear(prefix: str, out: int, dim: int) -> Dict[str, Tensor]:
    return {f'{prefix}.weight': draw(out, dim), f'{prefix}.bias': draw(out)}


def blocks(prefix: str, dim: int, count: int, split: bool = False) -> Dict[str, Tensor]:
    """timm's blocks; ``split``: VideoMAE's, whose key projection has no bias."""
    state: Dict[str, Tensor] = {}
    for i in range(count):
        b = f'{prefix}blocks.{i}.'
        state |= norm(b + 'norm1', dim) | norm(b + 'norm2', dim)
        state |= linear(b + 'attn.proj', dim, dim) | linear(b + 'attn.qkv', 3 * dim, dim)
        if split:
            del state[b + 'attn.qkv.bias']
            state |= {b + 'attn.q_bias': draw(dim), b + 'attn.v_bias': draw(dim)}
        state |= linear(b + 'mlp.fc1', 4 * dim, dim) | linear(b + 'mlp.fc2', dim, 4 * dim)
    return state


def timm_vit() -> Dict[str, Tensor]:
    state = {'cls_token': draw(1, 1, DIM), 'pos_embed': draw(1, 197, DIM),
             'patch_embed.proj.weight': draw(DIM, 3, 16, 16), 'patch_embed.proj.bias': draw(DIM)}
    return state | blocks('', DIM, DEPTH) | norm('norm', DIM)


def mae(path: Path) -> None:
    torch.save({'model': timm_vit()}, path)


def deit(path: Path) -> None:
    torch.save({'model': timm_vit() | linear('head', 1000, DIM)}, path)


def timm_plain(path: Path) -> None:
    torch.save(timm_vit() | linear('head', 1000, DIM), path)


def mocov3(path: Path) -> None:
    """The file of the linear probe, with its optimizer."""
    state = {f'module.{k}': v for k, v in (timm_vit() | linear('head', 1000, DIM)).items()}
    groups = [{'lr': 0., 'momentum': 0.9, 'params': [0, 1]}]
    torch.save({'epoch': 90, 'arch': 'vit_base', 'state_dict': state, 'best_acc1': torch.tensor(76.7),
                'optimizer': {'state': {0: {'momentum_buffer': draw(1000, DIM)}}, 'param_groups': groups}}, path)


def beit(path: Path) -> None:
    """mmpretrain's file of the fine-tuned BEiT v2, in its own names."""
    state = {'cls_token': draw(1, 1, DIM), 'patch_embed.projection.weight': draw(DIM, 3, 16, 16),
             'patch_embed.projection.bias': draw(DIM), **norm('ln2', DIM)}
    for i in range(DEPTH):
        b = f'layers.{i}.'
        state |= norm(b + 'ln1', DIM) | norm(b + 'ln2', DIM) | linear(b + 'attn.proj', DIM, DIM)
        state |= linear(b + 'ffn.layers.0.0', 4 * DIM, DIM) | linear(b + 'ffn.layers.1', DIM, 4 * DIM)
        state |= {b + 'gamma_1': draw(DIM), b + 'gamma_2': draw(DIM), b + 'attn.qkv.weight': draw(3 * DIM, DIM),
                  b + 'attn.q_bias': draw(DIM), b + 'attn.v_bias': draw(DIM),
                  b + 'attn.relative_position_bias_table': draw(27 * 27 + 3, HEADS),
                  b + 'attn.relative_position_index': torch.zeros(197, 197, dtype=torch.long)}
    head = linear('head.fc', 1000, DIM)
    torch.save({'meta': {}, 'state_dict': {f'backbone.{k}': v for k, v in state.items()} | head}, path)


def jax(path: Path) -> None:
    arrays = {'cls': draw(1, 1, DIM), 'Transformer/posembed_input/pos_embedding': draw(1, 197, DIM),
              'embedding/kernel': draw(16, 16, 3, DIM), 'embedding/bias': draw(DIM)}
    head = DIM // HEADS
    for i in range(DEPTH):
        b = f'Transformer/encoderblock_{i}/'
        for name in ('LayerNorm_0', 'LayerNorm_2'):
            arrays |= {f'{b}{name}/scale': 1 + draw(DIM), f'{b}{name}/bias': draw(DIM)}
        a = b + 'MultiHeadDotProductAttention_1/'
        for name in ('query', 'key', 'value'):
            arrays |= {f'{a}{name}/kernel': draw(DIM, HEADS, head), f'{a}{name}/bias': draw(HEADS, head)}
        arrays |= {f'{a}out/kernel': draw(HEADS, head, DIM), f'{a}out/bias': draw(DIM)}
        for name, (rows, columns) in (('Dense_0', (DIM, 4 * DIM)), ('Dense_1', (4 * DIM, DIM))):
            arrays |= {f'{b}MlpBlock_3/{name}/kernel': draw(rows, columns), f'{b}MlpBlock_3/{name}/bias': draw(columns)}
    arrays |= {'Transformer/encoder_norm/scale': 1 + draw(DIM), 'Transformer/encoder_norm/bias': draw(DIM),
               'pre_logits/kernel': draw(DIM, DIM), 'pre_logits/bias': draw(DIM), 'head/kernel': draw(DIM, 21843),
               'head/bias': draw(21843)}
    np.savez(path, **{k: v.numpy() for k, v in arrays.items()})


def relative_index(window: Tuple[int, ...]) -> Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.arange(w) for w in window], indexing='ij')).flatten(1)
    relative = (grid[:, :, None] - grid[:, None]).permute(1, 2, 0).contiguous()
    for axis, size in enumerate(window):
        relative[..., axis] += size - 1
        for longer in window[axis + 1:]:
            relative[..., axis] *= 2 * longer - 1
    return relative.sum(-1)


def swin_state(window: Tuple[int, ...], kernel: Tuple[int, ...], masks: bool = False) -> Dict[str, Tensor]:
    state = {'patch_embed.proj.weight': draw(SWIN_DIM, 3, *kernel), 'patch_embed.proj.bias': draw(SWIN_DIM)}
    state |= norm('patch_embed.norm', SWIN_DIM)
    rows = int(np.prod([2 * w - 1 for w in window]))
    for stage, (depth, heads) in enumerate(zip(SWIN_DEPTHS, SWIN_HEADS)):
        dim = SWIN_DIM * 2**stage
        for j in range(depth):
            b = f'layers.{stage}.blocks.{j}.'
            state |= norm(b + 'norm1', dim) | norm(b + 'norm2', dim)
            state |= {b + 'attn.relative_position_bias_table': draw(rows, heads),
                      b + 'attn.relative_position_index': relative_index(window)}
            state |= linear(b + 'attn.qkv', 3 * dim, dim) | linear(b + 'attn.proj', dim, dim)
            state |= linear(b + 'mlp.fc1', 4 * dim, dim) | linear(b + 'mlp.fc2', dim, 4 * dim)
            if masks and j % 2:
                state[b + 'attn_mask'] = torch.zeros(64 // 4**stage, 49, 49)
        if stage < 3:
            state[f'layers.{stage}.downsample.reduction.weight'] = draw(2 * dim, 4 * dim)
            state |= norm(f'layers.{stage}.downsample.norm', 4 * dim)
    return state | norm('norm', SWIN_DIM * 8)


def swin(path: Path) -> None:
    torch.save({'model': swin_state((7, 7), (4, 4), True) | linear('head', 21841, SWIN_DIM * 8)}, path)


def video_swin(path: Path, classes: int = 400) -> None:
    state = {f'backbone.{k}': v for k, v in swin_state((8, 7, 7), (2, 4, 4)).items()}
    meta = {'epoch': 30, 'iter': 1, 'mmcv_version': '1.3.1', 'time': 'x', 'config': 'model=dict()', 'CLASSES': None}
    torch.save({'meta': meta, 'state_dict': state | linear('cls_head.fc_cls', classes, SWIN_DIM * 8)}, path)


def videomae(path: Path) -> None:
    """A pre-training file: encoder, decoder, optimizer, scaler and the arguments of the run."""
    state = {'encoder.patch_embed.proj.weight': draw(DIM, 3, 2, 16, 16), 'encoder.patch_embed.proj.bias': draw(DIM)}
    state |= blocks('encoder.', DIM, DEPTH, True) | norm('encoder.norm', DIM)
    state |= blocks('decoder.', 16, 1, True) | norm('decoder.norm', 16) | linear('decoder.head', 1536, 16)
    state |= {'encoder_to_decoder.weight': draw(16, DIM), 'mask_token': draw(1, 1, 16)}
    run = argparse.Namespace(batch_size=64, epochs=1600, model='pretrain_videomae', window_size=(8, 14, 14))
    torch.save({'model': state, 'optimizer': {'state': {}, 'param_groups': [{'lr': 1e-3, 'params': [0]}]},
                'epoch': 1599, 'scaler': {'scale': 65536.0}, 'args': run}, path)


class _Scripted(nn.Module):

    def forward(self, x: Tensor) -> Tensor:
        return x


def clip(path: Path, patch: int) -> None:
    """A scripted archive in half precision with OpenAI's parameter tree."""
    root = _Scripted()

    def put(name: str, value: Tensor) -> None:
        *parents, last = name.split('.')
        module = root
        for part in parents:
            if part not in module._modules:
                module.add_module(part, _Scripted())
            module = module._modules[part]
        module.register_parameter(last, nn.Parameter(value.half(), requires_grad=False))

    def tower(prefix: str, dim: int) -> None:
        for i in range(DEPTH):
            b = f'{prefix}transformer.resblocks.{i}.'
            state = norm(b + 'ln_1', dim) | norm(b + 'ln_2', dim) | linear(b + 'attn.out_proj', dim, dim)
            state |= linear(b + 'mlp.c_fc', 4 * dim, dim) | linear(b + 'mlp.c_proj', dim, 4 * dim)
            state |= {b + 'attn.in_proj_weight': draw(3 * dim, dim), b + 'attn.in_proj_bias': draw(3 * dim)}
            for name, value in state.items():
                put(name, value)

    visual = {'class_embedding': draw(DIM), 'positional_embedding': draw((224 // patch)**2 + 1, DIM),
              'proj': draw(DIM, 16), 'conv1.weight': draw(DIM, 3, patch, patch), **norm('ln_pre', DIM),
              **norm('ln_post', DIM)}
    text = {'positional_embedding': draw(77, 64), 'text_projection': draw(64, 16), 'logit_scale': torch.tensor(4.6),
            'token_embedding.weight': draw(49408, 64), **norm('ln_final', 64),
            **{f'visual.{k}': v for k, v in visual.items()}}
    for name, value in text.items():
        put(name, value)
    tower('visual.', DIM)
    tower('', 64)
    for name, number in (('input_resolution', 224), ('context_length', 77), ('vocab_size', 49408)):
        root.register_buffer(name, torch.tensor(number))
    torch.jit.save(torch.jit.script(root.eval()), str(path))


#: Official file -> how it is written.
def own(build: Callable[..., nn.Module], **kwargs: Any) -> Callable[[Path], None]:
    """A file of mmpretrain or mmaction2 of a model in its own names, with the classifier of its training."""

    def write(path: Path) -> None:
        model = build(**kwargs)
        state = {f'backbone.{k}': v for k, v in model.state_dict().items()}
        state = {k: v + draw(*v.shape) if v.is_floating_point() else v for k, v in state.items()}
        torch.save({'meta': {}, 'state_dict': state | linear('head.fc', 1000, DIM)}, path)

    return write


_VIT = dict(embed_dims=DIM, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=4 * DIM)
#: mmpretrain's and mmaction2's later classes at the sizes of tests/small_backbones.py, for the pictures that they read.
OWN = {
    'deit3-small-p16_3rdparty_in1k_20221008-0f7c70cf.pth': own(DeiT3, arch=_VIT, img_size=224, patch_size=16),
    'eva02-small-p14_pre_in21k_20230505-3175f463.pth': own(
        ViTEVA02, arch=_VIT, img_size=224, patch_size=14, final_norm=False, out_type='avg_featmap'),
    'swinv2-base-w8_3rdparty_in1k-256px_20220803-8ff28f2b.pth': own(
        SwinTransformerV2, img_size=32, pretrained_window_sizes=[8, 8, 8, 8], **MM['SwinTransformerV2'][0]),
    'mvitv2-tiny_3rdparty_in1k_20220722-db7beeef.pth': own(MViT, img_size=32, **MM['MViT'][0]),
    'mvit-small-p244_16x4x1_kinetics400-rgb_20221021-9ebaaeed.pth': own(
        mmaction_mvit.MViT, spatial_size=32, **MM['VideoMViT'][0]),
    'uniformerv2-base-p16-res224_clip_8xb32-u8_kinetics400-rgb_20230313-e29fc968.pth': own(
        UniFormerV2, input_resolution=32, t_size=8, double_lmhra=True, clip_pretrained=False, **MM['UniFormerV2'][0]),
}
WRITERS = {
    **OWN,
    'ViT-B_16.npz': jax,
    'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz': jax,
    'jx_vit_base_p16_224-80ecf9dd.pth': timm_plain,
    'deit_base_patch16_224-b5f2ef4d.pth': deit,
    'mae_pretrain_vit_base.pth': mae,
    'beitv2-base_3rdparty_in1k_20221114-73e11905.pth': beit,
    'linear-vit-b-300ep.pth.tar': mocov3,
    'swin_base_patch4_window7_224_22k.pth': swin,
    'swin_base_patch244_window877_kinetics400_22k.pth': video_swin,
    'swin_base_patch244_window877_kinetics600_22k.pth': lambda path: video_swin(path, 600),
    'ViT-B-32.pt': lambda path: clip(path, 32),
    'ViT-B-16.pt': lambda path: clip(path, 16),
    **{f'videomae_vit-{name}.pth': videomae for name in ('small_k400_1600e', 'base_k400_1600e', 'large_k400_1600e',
                                                         'huge_k400_1600e', 'small_ssv2_2400e', 'base_ssv2_2400e')},
}


def write_weights(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in WRITERS.items():
        write(folder / name)


def write_prompts(folder: Path) -> None:
    """The toolkit's prompts.py with a template and the numbers of classes of three data sets."""
    lines = ["templates = [\n    'a photo of a {}.',\n    'the {}.',\n]"]
    names = ('dtd', 'mnist', 'kitti-distance')
    for name in names:
        classes = [f'class {i}' for i in range(get_task('elevater', name).num_classes)]
        lines.append(f'{name.replace("-", "_")}_classes = {classes!r}')
    for kind, value in (('class_map', '{}_classes'), ('template_map', 'templates')):
        rows = ', '.join(f'{n!r}: {value.format(n.replace("-", "_"))}' for n in names)
        lines.append(f'{kind} = {{{rows}}}')
    (folder / 'elevater').mkdir(parents=True, exist_ok=True)
    (folder / 'elevater/prompts.py').write_text('\n'.join(lines) + '\n')


def write_image_data(root: Path) -> None:
    suite_data.write_vtab(str(root / 'vtab-1k'), 'kitti', dict(train800=8, val200=4, test=4))
    suite_data.write_fgvc(str(root / 'fgvc'), 'CUB', dict(train=1, val=1, test=1))
    suite_data.write_elevater(str(root / 'elevater'), 'dtd', dict(train=5, test=1))


def write_video(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 12, (64, 48))
    for i in range(20):
        writer.write(np.full((48, 64, 3), 10 * i % 250, np.uint8))
    writer.release()


def write_video_data(root: Path) -> None:
    """Lists as the prepare tools write them, over a handful of videos."""
    for name in ('hmdb51', 'ucf101', 'ssv2', 'k400'):
        lists = root / name / ('split1' if name in ('hmdb51', 'ucf101') else '')
        lists.mkdir(parents=True, exist_ok=True)
        videos = ['videos/a clip.mp4', 'videos/another clip.mp4']
        for video in videos:
            write_video(root / name / video)
        for part in ('train', 'val', 'test'):
            write_video_list(str(lists / f'{part}.csv'), [(video, i) for i, video in enumerate(videos)])
        (root / name / 'classes.txt').write_text(''.join(f'class_{c}\n' for c in range(VIDEO_SETS[name].num_classes)))
