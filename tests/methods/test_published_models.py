# SPDX-License-Identifier: Apache-2.0
"""Methods attached to whole backbones and to their attentions, against arrays of the published models.

The weights and results were stored by the published code; only names are translated here.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmpetl.backbones import CLIPVisionTransformer, VideoMAE, VisionTransformer
from mmpetl.registry import METHODS
from mmpetl.sites import BlockSpec

GOLDEN = Path(__file__).parents[3] / 'shared' / 'golden'

#: timm -> mmpretrain
TRUNK = {
    'patch_embed.proj.': 'patch_embed.projection.', 'blocks.': 'layers.', '.norm1.': '.ln1.', '.norm2.': '.ln2.',
    '.mlp.fc1.': '.ffn.layers.0.0.', '.mlp.fc2.': '.ffn.layers.1.'
}


def load(name):
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f'{path} is not there')
    return {k: torch.from_numpy(v) if v.dtype.kind == 'f' else v for k, v in np.load(path).items()}


def trunk_name(name):
    if name.startswith('norm.'):
        return name.replace('norm.', 'ln1.')
    for theirs, ours in TRUNK.items():
        name = name.replace(theirs, ours)
    return name


def tiny_vit(method):
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)
    backbone = VisionTransformer(arch=arch, img_size=24, patch_size=8, out_type='raw', petl=[method]).double()
    backbone.eval()
    return backbone


def run_vit(backbone, golden):
    """Block outputs, logits and loss of a tiny classifier; gradients are left on the parameters. -> results, head
    parameters."""
    blocks = []
    for layer in backbone.layers:
        layer.register_forward_hook(lambda module, inputs, output: blocks.append(output))
    head = [golden[f'param.head.{k}'].double().requires_grad_() for k in ('weight', 'bias')]
    logits = F.linear(backbone(golden['in.img'].double())[0][:, 0], *head)
    loss = F.cross_entropy(logits, torch.from_numpy(golden['in.label']))
    loss.backward()
    return {'block0': blocks[0], 'block1': blocks[1], 'logits': logits, 'loss': loss}, head


def assert_golden(golden, results, head, gradients):
    for name, value in results.items():
        np.testing.assert_allclose(value.detach(), golden[f'out.{name}'], rtol=0, atol=1e-12, err_msg=name)
    found = {f'head.{k}': p.grad for k, p in zip(('weight', 'bias'), head)} | gradients
    assert set(found) == {k[5:] for k in golden if k.startswith('grad.')}
    for name, value in found.items():
        np.testing.assert_allclose(value, golden[f'grad.{name}'], rtol=1e-6, atol=1e-7, err_msg=name)


def test_convpass_vision_transformer():
    golden = load('synqt_convpass.npz')
    backbone = tiny_vit(dict(type='Convpass', mid_dims=4, scale=0.7))
    names = {f'blocks.{i}.adapter_{theirs}.adapter_{part}.{kind}': f'petl.convpass.blocks.{i}.{ours}.{part}.{kind}'
             for i in (0, 1) for theirs, ours in (('attn', 'attn'), ('mlp', 'ffn')) for part in ('down', 'conv', 'up')
             for kind in ('weight', 'bias')}
    state = {
        names.get(k[6:], trunk_name(k[6:])): v
        for k, v in golden.items() if k.startswith('param.') and '.head.' not in k
    }
    backbone.load_state_dict(state)
    results, head = run_vit(backbone, golden)
    assert_golden(golden, results, head, {theirs: backbone.get_parameter(ours).grad for theirs, ours in names.items()})


def ssf_names():
    """Published name without 'scale' or 'shift' and their number -> (block, ops in the order of the rows)."""
    names = {'ssf_{}_1': (1, ['final']), 'patch_embed.ssf_{}_1': (0, ['embed'])}
    for i in (0, 1):
        names |= {f'blocks.{i}.ssf_{{}}_1': (i, ['norm1']), f'blocks.{i}.ssf_{{}}_2': (i, ['norm2']),
                  f'blocks.{i}.attn.ssf_{{}}_1': (i, ['q', 'k', 'v']), f'blocks.{i}.attn.ssf_{{}}_2': (i, ['proj']),
                  f'blocks.{i}.mlp.ssf_{{}}_1': (i, ['fc1']), f'blocks.{i}.mlp.ssf_{{}}_2': (i, ['fc2'])}
    return {k.format(part): (i, ops, part) for k, (i, ops) in names.items() for part in ('scale', 'shift')}


def test_ssf_vision_transformer():
    golden = load('synqt_ssf.npz')
    backbone = tiny_vit(dict(type='SSF'))
    names = ssf_names()
    state = {
        trunk_name(k[6:]): v
        for k, v in golden.items() if k.startswith('param.') and '.head.' not in k and k[6:] not in names
    }
    for theirs, (i, ops, part) in names.items():
        for op, value in zip(ops, golden[f'param.{theirs}'].chunk(len(ops))):
            state[f'petl.ssf.blocks.{i}.{op}.{part}'] = value
    backbone.load_state_dict(state)
    results, head = run_vit(backbone, golden)
    gradients = {theirs: torch.cat([getattr(backbone.petl['ssf'].blocks[str(i)][op], part).grad for op in ops])
                 for theirs, (i, ops, part) in names.items()}
    assert_golden(golden, results, head, gradients)


def clip_layer(method, dim, heads, ffn_dim):
    arch = dict(embed_dims=dim, num_layers=1, num_heads=heads, feedforward_channels=ffn_dim)
    backbone = CLIPVisionTransformer(arch=arch, img_size=16, patch_size=8, out_type='raw', petl=[method]).double()
    backbone.eval()
    return backbone.layers[0], backbone.petl


@pytest.mark.parametrize('tag,options', [('a_prescale_untied', {}),
                                         ('b_postscale_tied', dict(tie_factors=True, post_scale_q=True))])
def test_kadaptation_attention(tag, options):
    golden = load('kadapt_attn_clean.npz')
    layer, petl = clip_layer(
        dict(type='KAdaptation', scale=float(golden['scale']), **options), 64, int(golden['num_heads']), 64)
    method = petl['kadaptation']
    attn = {
        'qkv.weight': 'in_proj_weight',
        'qkv.bias': 'in_proj_bias',
        'proj.weight': 'out_proj.weight',
        'proj.bias': 'out_proj.bias'
    }
    layer.attn.load_state_dict({ours: golden[f'param.{theirs}'] for ours, theirs in attn.items()})
    names = {'biases.0': 'b'}
    for side in ('left', 'right'):
        names |= {f'rules.64.q.{side}': f'phm_rule1_{side}', f'rules.64.v.{side}': f'phm_rule2_{side}',
                  f'blocks.0.q.{side}': f'q_proj_adapter1_{side}'}
        if not method.tied:
            names[f'blocks.0.v.{side}'] = f'v_proj_adapter1_{side}'
    method.load_state_dict({ours: golden[f'param.{theirs}'] for ours, theirs in names.items()})
    x = golden['x'].double().requires_grad_()
    out = layer.attn(x)
    out.backward(golden['grad_out'].double())
    np.testing.assert_allclose(out.detach(), golden[f'{tag}.out'], rtol=0, atol=1e-12)
    np.testing.assert_allclose(x.grad, golden[f'{tag}.grad_x'], rtol=0, atol=1e-12)
    for ours, theirs in names.items():
        np.testing.assert_allclose(
            method.get_parameter(ours).grad, golden[f'{tag}.grad.{theirs}'], rtol=1e-9, atol=1e-12, err_msg=theirs)


def test_adapter_with_own_norm_in_a_clip_block():
    golden = load('kadapt_adapter_block.npz')
    layer, petl = clip_layer(
        dict(type='Adapter', mid_dims=64, kind='pfeiffer', act='relu', pre_norm=True), 32, int(golden['num_heads']),
        128)
    trunk = {
        'attn.in_proj_': 'attn.qkv.',
        'attn.out_proj': 'attn.proj',
        'ln_1': 'ln1',
        'ln_2': 'ln2',
        'mlp.c_fc': 'ffn.layers.0.0',
        'mlp.c_proj': 'ffn.layers.1'
    }
    own = {'adapter_norm_before': 'norm_in', 'adapter_down.1': 'down', 'adapter_up': 'up'}
    adapter = petl['adapter'].blocks['0']['ffn']
    names = {
        f'adapter.{theirs}.{kind}': f'{ours}.{kind}'
        for theirs, ours in own.items()
        for kind in ('weight', 'bias')
    }
    adapter.load_state_dict({ours: golden[f'param.{theirs}'] for theirs, ours in names.items()})
    state = {}
    for key, value in golden.items():
        if key.startswith('param.') and not key.startswith('param.adapter.'):
            name = key[6:]
            for theirs, ours in trunk.items():
                name = name.replace(theirs, ours)
            state[name] = value
    layer.load_state_dict(state)
    x = golden['x_seq_first'].double().transpose(0, 1).requires_grad_()
    out = layer(x)
    out.backward(golden['grad_out_seq_first'].double().transpose(0, 1))
    np.testing.assert_allclose(out.detach().transpose(0, 1), golden['out'], rtol=0, atol=1e-12)
    np.testing.assert_allclose(x.grad.transpose(0, 1), golden['grad_x'], rtol=0, atol=1e-11)
    for theirs, ours in names.items():
        np.testing.assert_allclose(
            adapter.get_parameter(ours).grad, golden[f'grad.{theirs}'], rtol=1e-9, atol=1e-11, err_msg=theirs)


@pytest.mark.parametrize('tag', ['none', 'plain', 'reparam', 'reparam_ones'])
def test_apt_attention_of_videomae(tag):
    golden = load('apt_attention.npz')
    petl = [] if tag == 'none' else [dict(type='APT', num_tokens=3, reparam='reparam' in tag)]
    backbone = VideoMAE(
        img_size=16, patch_size=8, embed_dims=32, depth=1, num_heads=4, mlp_ratio=4, num_frames=4, petl=petl).double()
    attn = backbone.blocks[0].attn
    names = {
        'qkv.weight': 'qkv_weight',
        'q_bias': 'q_bias',
        'v_bias': 'v_bias',
        'proj.weight': 'proj_weight',
        'proj.bias': 'proj_bias'
    }
    attn.load_state_dict({ours: golden[theirs] for ours, theirs in names.items()})
    x = golden['x'].double().requires_grad_()
    prompts = {}
    if petl:
        block = backbone.petl['apt'].blocks['0']
        prompts = {'key': 'gpk', 'value': 'gpv'} | ({'scale': 'gscale'} if 'reparam' in tag else {})
        scale = {'scale': golden['scale'] if tag == 'reparam' else torch.ones(2, 3)} if 'reparam' in tag else {}
        block.load_state_dict({'key': golden['p_k'], 'value': golden['p_v'], **scale})
    out = attn(x)
    (out * golden['w']).sum().backward()
    found = {
        'out': out.detach(),
        'gx': x.grad,
        **{
            theirs: block.get_parameter(ours).grad
            for ours, theirs in prompts.items()
        }
    }
    for name, value in found.items():
        # The published arrays were computed in single precision.
        np.testing.assert_allclose(value, golden[f'{tag}_{name}'], rtol=1e-6, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    'method,expected', [(dict(type='KAdaptation'), 50176), (dict(type='Compacter'), 48384),
                        (dict(type='LoRA', rank=4, alpha=128, init='normal'), 147456),
                        (dict(type='Adapter', mid_dims=64, kind='pfeiffer', act='relu', pre_norm=True), 1208064)],
    ids=lambda v: v['type'] if isinstance(v, dict) else str(v))
def test_counts_of_the_clip_comparison(method, expected):
    """Trained parameters beside the head (513 per class) on CLIP ViT-B: the mean over 20 tasks is this plus
    29,523.15."""
    specs = [BlockSpec(i, 0, 768, 12, 3072, 1, (7, 7), patch=(32, 32)) for i in range(12)]
    built = METHODS.build(dict(method, specs=specs))
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == expected
