# SPDX-License-Identifier: Apache-2.0
"""Folders of peft, both ways, against the installed peft: equal outputs on every kind of base."""

import copy
import json
import time

import pytest
import torch
from cases import BACKBONE, perturb
from safetensors.torch import load_file, save_file
from torch import nn

import mmpetl
from mmpetl.adapters.peft_names import by_layer

peft = pytest.importorskip('peft')
timm = pytest.importorskip('timm')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.peers

TIMM = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.)
HF = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8)


def _timm(**kwargs):
    return timm.models.vision_transformer.VisionTransformer(**{**TIMM, **kwargs})


def _eva(**kwargs):
    return timm.models.eva.Eva(**{**TIMM, 'num_classes': 0, 'use_rot_pos_emb': True, **kwargs})


#: name -> (tiny model, layers that peft adapts)
MODEL = {
    'timm ViT': (lambda: _timm(num_classes=3), ['qkv', 'attn.proj', 'fc1', 'fc2']),
    'timm DINOv2 gated': (lambda: _timm(init_values=0.5, mlp_layer=timm.layers.SwiGLUPacked, num_classes=0),
                          ['qkv', 'fc1', 'fc2']),
    'timm DINOv3': (lambda: _eva(rope_type='dinov3', rope_rotate_half=True, attn_type='rope'), ['qkv', 'attn.proj', 'fc2']),
    'timm EVA-02': (lambda: _eva(swiglu_mlp=True, qkv_fused=False, scale_mlp=True), ['q_proj', 'v_proj', 'fc1_g']),
    'ViTForImageClassification': (lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**HF, num_labels=3)), ['q_proj', 'v_proj', 'o_proj', 'fc1', 'fc2']),
    'Dinov2Model': (lambda: transformers.Dinov2Model(transformers.Dinov2Config(
        mlp_ratio=2, use_swiglu_ffn=True, **{k: v for k, v in HF.items() if k != 'intermediate_size'})),
                    ['q_proj', 'gate_proj', 'down_proj']),
    'DINOv3ViTModel': (lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**HF)),
                       ['k_proj', 'v_proj', 'up_proj']),
    'CLIPVisionModel': (lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**HF)),
                        ['q_proj', 'out_proj', 'fc1']),
    'SiglipVisionModel': (lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(
        vision_use_head=False, **HF)), ['k_proj', 'fc2']),
    'VideoMAEModel': (lambda: transformers.VideoMAEModel(transformers.VideoMAEConfig(
        num_frames=4, **HF)), ['query', 'value', 'intermediate.dense']),
    'mmpretrain ViT': (lambda: BACKBONE['vit'].build_upstream(), ['qkv', 'attn.proj', 'ffn.layers.1']),
    'mmpretrain Swin': (lambda: BACKBONE['swin'].build_upstream(), ['qkv', 'w_msa.proj', 'ffn.layers.0.0']),
    'mmaction2 Video Swin': (lambda: BACKBONE['video_swin'].build_upstream(), ['qkv', 'attn.proj', 'fc1']),
}


def _plain(name):
    torch.manual_seed(0)
    model = MODEL[name][0]()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.train(False)
    return model.requires_grad_(False)


def _inputs(name):
    shape = {'VideoMAEModel': (2, 4, 3, 32, 32), 'mmaction2 Video Swin': (2, 3, 8, 36, 36)}.get(name, (2, 3, 32, 32))
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _output(model, x):
    out = model(x)
    for key in ('logits', 'pooler_output', 'last_hidden_state'):
        if hasattr(out, 'get') and out.get(key) is not None:
            return out[key]
    return out[-1] if isinstance(out, (tuple, list)) else out


def _close(a, b, plain):
    assert (a - plain).abs().max() > 1e-4, 'the adapter has no effect'
    assert (a - b).abs().max() <= 1e-6 * max(1, a.abs().max())


def _both_ways(plain, theirs, x, tmp_path):
    """Read what peft has saved, and let peft read it back from us: the model of ours, in evaluation mode."""
    theirs.train(False)
    theirs.save_pretrained(str(tmp_path / 'theirs'))
    ours = copy.deepcopy(plain)
    mmpetl.load_peft(ours, str(tmp_path / 'theirs'))
    ours.train(False)
    _close(_output(theirs, x), _output(ours, x), _output(plain, x))
    mmpetl.save_peft(ours, str(tmp_path / 'ours'))
    again = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path / 'ours')).train(False)
    _close(_output(ours, x), _output(again, x), _output(plain, x))
    return ours


@pytest.mark.parametrize('name', MODEL)
def test_from_peft(name, tmp_path):
    plain, x = _plain(name), _inputs(name)
    targets = MODEL[name][1]
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=targets, use_rslora=name.startswith('timm'), lora_dropout=0.1,
        rank_pattern={targets[0]: 3}, alpha_pattern={targets[-1]: 5},
        modules_to_save=['classifier'] if 'Classification' in name else None)
    theirs = peft.get_peft_model(copy.deepcopy(plain), config)
    _move(theirs)
    theirs.train(False)
    theirs.save_pretrained(str(tmp_path))
    ours = copy.deepcopy(plain)
    assert mmpetl.load_peft(ours, str(tmp_path))['r'] == 2
    ours.train(False)
    _close(_output(theirs, x), _output(ours, x), _output(plain, x))
    report = mmpetl.merge(ours)
    assert report.merged and (_output(ours, x) - _output(theirs, x)).abs().max() <= 1e-5


@torch.no_grad()
def _move(model):
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if 'lora_' in name or 'ia3_' in name or 'modules_to_save' in name:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize('name', MODEL)
def test_to_peft(name, tmp_path):
    plain, x = _plain(name), _inputs(name)
    ours = copy.deepcopy(plain)
    gated = name in ('timm DINOv2 gated', 'timm EVA-02', 'Dinov2Model')
    ops = ['q', 'v', 'proj', 'fc1', 'fc2'] + (['gate'] if gated else [])
    blocks = 4 if 'Swin' in name else 3 if name == 'mmpretrain ViT' else 2
    mmpetl.attach(ours, [dict(type='LoRA', rank=list(range(1, blocks + 1)), alpha=6, ops=ops)])
    perturb(next(m for m in ours.modules() if hasattr(m, 'taps')), 0.1)
    ours.train(False)
    mmpetl.save_peft(ours, str(tmp_path))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path)).train(False)
    _close(_output(ours, x), _output(theirs, x), _output(plain, x))


@pytest.mark.parametrize('name', ['timm ViT', 'ViTForImageClassification', 'mmpretrain Swin'])
def test_ia3_both_ways(name, tmp_path):
    plain, x = _plain(name), _inputs(name)
    attention, second = dict(
        zip(['timm ViT', 'ViTForImageClassification', 'mmpretrain Swin'],
            [('qkv', 'fc2'), ('k_proj', 'fc2'), ('qkv', 'ffn.layers.1')]))[name]
    theirs = peft.get_peft_model(
        copy.deepcopy(plain), peft.IA3Config(target_modules=[attention, second], feedforward_modules=[second]))
    _move(theirs)
    _both_ways(plain, theirs, x, tmp_path)


@pytest.mark.parametrize('method', [dict(type='DoRA', rank=2, alpha=4, ops='fc1'), dict(type='LoHa', rank=2, ops='fc1')])
def test_half_of_a_fused_layer_to_peft(method, tmp_path):
    """The first layer of a gated network holds gate and fc1; where fc1 alone is adapted the gate keeps its rows."""
    plain, x = _plain('timm DINOv2 gated'), _inputs('timm DINOv2 gated')
    ours = mmpetl.attach(copy.deepcopy(plain), [method])
    perturb(next(m for m in ours.modules() if hasattr(m, 'taps')), 0.1)
    ours.train(False)
    mmpetl.save_peft(ours, str(tmp_path))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path)).train(False)
    _close(_output(ours, x), _output(theirs, x), _output(plain, x))


#: peft's configs of further kinds; layers of q, k and v in one are divided by what they allow.
KINDS = {
    'DoRA': lambda t: peft.LoraConfig(r=2, lora_alpha=3, target_modules=t, use_dora=True, rank_pattern={t[0]: 3}),
    'LoHa': lambda t: peft.LoHaConfig(r=2, alpha=3, target_modules=t, rank_pattern={t[0]: 3}, alpha_pattern={t[-1]: 5}),
    'LoKr': lambda t: peft.LoKrConfig(r=2, alpha=3, target_modules=t, decompose_factor=6),
    'LoKr whole': lambda t: peft.LoKrConfig(r=9, alpha=3, target_modules=t, decompose_factor=6),
    'LoKr both': lambda t: peft.LoKrConfig(r=1, alpha=3, target_modules=t, decompose_factor=6, decompose_both=True),
    'OFT': lambda t: peft.OFTConfig(oft_block_size=8, target_modules=t),
    'OFT exact': lambda t: peft.OFTConfig(oft_block_size=4, target_modules=t, use_cayley_neumann=False),
    'OFT shared': lambda t: peft.OFTConfig(r=4, oft_block_size=0, target_modules=t, block_share=True,
                                           num_cayley_neumann_terms=3),
    'VeRA': lambda t: peft.VeraConfig(r=4, target_modules=t, vera_dropout=0.1),
    'AdaLoRA': lambda t: peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=3, total_step=9, target_modules=t),
    'BOFT': lambda t: peft.BOFTConfig(boft_block_size=8, target_modules=t),
}
TRUNKS = {'mmpretrain ViT': ['qkv', 'attn.proj', 'ffn.layers.1'], 'timm ViT': ['qkv', 'attn.proj', 'fc1'],
          'ViTForImageClassification': ['q_proj', 'v_proj', 'o_proj', 'fc2']}


@pytest.mark.parametrize('name', TRUNKS)
@pytest.mark.parametrize('kind', KINDS)
def test_further_kinds_both_ways(kind, name, tmp_path):
    """From peft, back to peft, and from there again: equal outputs three times."""
    plain, x, targets = _plain(name), _inputs(name), TRUNKS[name]
    if kind == 'OFT shared':  # block sizes must be equal for the way back
        targets = [t for t in targets if t not in ('ffn.layers.1', 'fc2')]
    theirs = peft.get_peft_model(copy.deepcopy(plain), KINDS[kind](targets))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    ours = _both_ways(plain, theirs, x, tmp_path)
    report = mmpetl.merge(ours)
    assert report.merged and (_output(ours, x) - _output(theirs, x)).abs().max() <= 2e-5


#: Methods as users configure them here, and what peft cannot hold of them where q, k and v are one layer.
OURS = {
    'DoRA': (dict(type='DoRA', rank=3, alpha=6, ops='q,v,proj,fc1'), ''),
    'LoHa': (dict(type='LoHa', rank=[1, 2, 3], alpha=6, ops='q,v,proj,fc1'), ''),
    'VeRA': (dict(type='VeRA', rank=4, ops='q,v,proj,fc1,fc2'), ''),
    'LoKr': (dict(type='LoKr', rank=2, alpha=4, ops='q,v,proj,fc1'), 'holds q, k, v; peft has one Kronecker product'),
    'OFT': (dict(type='OFT', block_size=8, ops='q,v,proj,fc1'), 'holds q, k, v; peft rotates what they read once'),
    'AdaLoRA': (dict(type='AdaLoRA', rank=3, alpha=6, ops='q,v,proj,fc1'), ''),
    'BOFT': (dict(type='BOFT', block_size=8, factors=1, ops='q,v,proj'), 'holds q, k, v; peft rotates what they read once'),
    'OFT series': (dict(type='OFT', block_size=8, ops='proj,fc2', neumann_terms=6), ''),
}


@pytest.mark.parametrize('name', ['mmpretrain ViT', 'ViTForImageClassification'])
@pytest.mark.parametrize('kind', OURS)
def test_ours_to_peft(kind, name, tmp_path):
    plain, x = _plain(name), _inputs(name)
    method, refusal = OURS[kind]
    if isinstance(method.get('rank'), list) and name != 'mmpretrain ViT':
        method = dict(method, rank=method['rank'][:2])
    ours = mmpetl.attach(copy.deepcopy(plain), [method])
    perturb(next(m for m in ours.modules() if hasattr(m, 'taps')), 0.1)
    ours.train(False)
    if refusal and name == 'mmpretrain ViT':
        with pytest.raises(ValueError, match=refusal) as error:
            mmpetl.save_peft(ours, str(tmp_path))
        assert '\n' not in str(error.value) and not list(tmp_path.iterdir())
        return
    mmpetl.save_peft(ours, str(tmp_path))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path)).train(False)
    _close(_output(ours, x), _output(theirs, x), _output(plain, x))


@pytest.mark.parametrize('config, changes, message', [
    (peft.OFTConfig(oft_block_size=8, target_modules=['qkv'], coft=True), {}, 'coft=True is not read here'),
    (peft.OFTConfig(oft_block_size=8, target_modules=['qkv']), dict(num_cayley_neumann_terms=2), '3 to 64 are'),
    (peft.OFTConfig(oft_block_size=8, target_modules=['qkv']), dict(peft_version='0.17.1'), 'peft before 0.18'),
    (peft.OFTConfig(oft_block_size=8, target_modules=['qkv']), dict(peft_version=None), 'peft before 0.18'),
    (peft.VeraConfig(r=2, target_modules=['qkv'], save_projection=False), {}, 'save_projection=True'),
    (peft.LoKrConfig(r=2, target_modules=['qkv']), {}, 'cannot be divided among its ops: blocks of 12 rows'),
    (peft.LoKrConfig(r=9, target_modules=['fc1'], decompose_factor=6), dict(rank_pattern={'.*fc1': 4}),
     'states rank 4 for blocks.0.mlp.fc1, whose tensors have rank'),
    (peft.LoKrConfig(r=2, target_modules=['fc1']), dict(rank_pattern={r'blocks\.\d.mlp.*1': 3}),
     'states rank 3 for blocks.0.mlp.fc1, whose tensors have rank 2'),
    (peft.LoHaConfig(r=2, target_modules=['fc1']), dict(rank_pattern={'.*[1-9].mlp.fc1$': 3}),
     'states rank 3 for blocks.1.mlp.fc1, whose tensors have rank 2'),
    (peft.AdaLoraConfig(init_r=2, total_step=9, target_modules=['fc1']), dict(init_r=0), 'init_r=0 is not a whole number'),
    (peft.AdaLoraConfig(init_r=2, total_step=9, target_modules=['fc1']), dict(lora_alpha=0), 'must be above 0'),
    (peft.AdaLoraConfig(init_r=2, total_step=9, target_modules=['fc1']),
     dict(rank_pattern={'blocks.1.mlp.fc1.lora_E': [True, False]}), 'rank_pattern of blocks.1.mlp.fc1 does not keep the 2'),
    (peft.BOFTConfig(boft_block_size=8, target_modules=['fc1']), dict(boft_dropout=0.5), 'boft_dropout=0.5 is not read'),
    (peft.LoHaConfig(r=2, target_modules=['qkv']), dict(module_dropout=0.5), 'module_dropout=0.5 is not read here'),
    (peft.LoHaConfig(r=2, target_modules=['qkv']), dict(alpha='8'), 'is not a number'),
    (peft.LoHaConfig(r=2, target_modules=['qkv']), dict(peft_type='LOKR'), 'is neither a factor nor a parameter'),
])
def test_what_further_kinds_refuse(config, changes, message, tmp_path):
    plain = _plain('timm ViT')
    theirs = peft.get_peft_model(copy.deepcopy(plain), config)
    theirs.save_pretrained(str(tmp_path))
    path = tmp_path / 'adapter_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        mmpetl.load_peft(plain, str(tmp_path))
    assert '\n' not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in plain.state_dict().items())


@pytest.mark.parametrize('name', TRUNKS)
def test_a_pruned_adalora_both_ways(name, tmp_path):
    """After peft has taken triplets away ranks differ, one layer has none left; a pruned one of ours goes to peft."""
    plain, x, targets = _plain(name), _inputs(name), TRUNKS[name]
    theirs = peft.get_peft_model(copy.deepcopy(plain), peft.AdaLoraConfig(
        init_r=4, target_r=1, tinit=1, tfinal=2, lora_alpha=3, total_step=8, target_modules=targets))
    generator = torch.Generator().manual_seed(3)
    weak = next(n for n, _ in theirs.named_parameters() if 'lora_E' in n)
    for step in range(1, 9):
        for key, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                # One layer that matters least loses all of its triplets.
                small = 1e-6 if key.replace('lora_A', 'lora_E').replace('lora_B', 'lora_E') == weak else 1
                parameter.grad = small * torch.randn(parameter.shape, generator=generator)
                parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        theirs.base_model.update_and_allocate(step)
    kept = theirs.peft_config['default'].rank_pattern
    assert {sum(mask) for mask in kept.values()} > {0, 1} and min(sum(mask) for mask in kept.values()) == 0
    ours = _both_ways(plain, theirs, x, tmp_path)
    ranks = {len(t.values) for m in _petl(ours).values() for t in m.triplets().values()}
    assert len(ranks) > 1 and 0 not in ranks
    assert {tuple(v) for v in json.loads((tmp_path / 'ours/adapter_config.json').read_text())['rank_pattern'].values()}
    report = mmpetl.merge(ours)
    assert report.merged and (_output(ours, x) - _output(theirs, x)).abs().max() <= 2e-5


def _petl(model):
    return next(m for m in model.modules() if hasattr(m, 'taps'))


def test_boft_of_several_factors_both_ways(tmp_path, monkeypatch):
    """peft has them with its CUDA extension alone, whose one function is a block diagonal."""
    layer = peft.tuners.boft.layer
    monkeypatch.setattr(layer, 'get_fbd_cuda', lambda: True)
    monkeypatch.setattr(layer.FastBlockDiag, 'apply', lambda blocks: torch.stack([torch.block_diag(*b) for b in blocks]))
    plain, x = _plain('timm ViT'), _inputs('timm ViT')
    theirs = peft.get_peft_model(copy.deepcopy(plain), peft.BOFTConfig(
        boft_block_num=8, boft_block_size=0, boft_n_butterfly_factor=3, target_modules=['qkv', 'fc1']))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    _both_ways(plain, theirs, x, tmp_path)


def _norms(model):
    """Of the blocks: peft takes names that end so, and timm has empty modules called as its last norm is."""
    return [n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) and '.' in n]


#: Parameters of the base that train: peft's config -> names of a few that are tuned afterwards.
TUNED = {
    'bias all': lambda m, t: peft.LoraConfig(r=2, target_modules=t, bias='all'),
    'bias of layers': lambda m, t: peft.LoraConfig(r=2, target_modules=t, bias='lora_only'),
    'AdaLoRA with biases': lambda m, t: peft.AdaLoraConfig(init_r=2, total_step=9, target_modules=t, bias='all'),
    'modules': lambda m, t: peft.LoHaConfig(r=2, target_modules=t, modules_to_save=_norms(m)[:2]),
    'norms': lambda m, t: peft.LNTuningConfig(target_modules=_norms(m)),
    'norms and modules': lambda m, t: peft.LNTuningConfig(target_modules=_norms(m), modules_to_save=t[-1:]),
}


@pytest.mark.parametrize('name', TRUNKS)
@pytest.mark.parametrize('kind', TUNED)
def test_tuned_parameters_both_ways(kind, name, tmp_path):
    plain, x = _plain(name), _inputs(name)
    theirs = peft.get_peft_model(copy.deepcopy(plain), TUNED[kind](plain, TRUNKS[name]))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    ours = _both_ways(plain, theirs, x, tmp_path)
    backbone = next(m for m in ours.modules() if hasattr(m, 'petl'))
    assert backbone.petl.tune and mmpetl.summary(ours).tuned > 0
    # In a bank the base comes back when another adapter is on.
    bank = mmpetl.AdapterBank(copy.deepcopy(plain))
    bank.add_file('theirs', str(tmp_path / 'theirs'))
    bank.model.train(False)
    _close(_output(theirs, x), _output(bank.model, x), _output(plain, x))
    with bank.using(None):
        assert (_output(bank.model, x) - _output(plain, x)).abs().max() <= 1e-6


@pytest.mark.parametrize('name, tune', [('timm ViT', '*norm*'), ('mmpretrain ViT', '*ln*'), ('Dinov2Model', '*norm*')])
def test_norms_of_ours_to_peft(name, tune, tmp_path):
    plain, x = _plain(name), _inputs(name)
    ours = mmpetl.attach(copy.deepcopy(plain), tune=[tune])
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            if parameter.requires_grad and 'head' not in key:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    ours.train(False)
    mmpetl.save_peft(ours, str(tmp_path))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path)).train(False)
    _close(_output(ours, x), _output(theirs, x), _output(plain, x))
    again = copy.deepcopy(plain)
    mmpetl.load_peft(again, str(tmp_path))
    again.train(False)
    assert torch.equal(_output(again, x), _output(ours, x))


def test_modules_whose_names_end_as_that_of_one_that_is_saved(tmp_path):
    """peft takes every module whose name ends so for one of modules_to_save, and opens no folder that lacks it."""
    torch.manual_seed(0)
    plain, x = _timm(num_classes=3, qk_norm=True).eval().requires_grad_(False), _inputs('timm ViT')
    ours = mmpetl.attach(copy.deepcopy(plain), [dict(type='LoRA', rank=2)], tune=['norm.*'])
    perturb(ours.petl, 0.1)
    with torch.no_grad():
        ours.norm.weight.add_(0.5)
    ours.eval()
    mmpetl.save_peft(ours, str(tmp_path / 'ours'))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path / 'ours')).train(False)
    _close(_output(ours, x), _output(theirs, x), _output(plain, x))
    again = copy.deepcopy(plain)
    mmpetl.load_peft(again, str(tmp_path / 'ours'))
    assert (_output(again.eval(), x) - _output(ours, x)).abs().max() <= 1e-6
    net = mmpetl.attach(nn.Sequential(_timm(num_classes=0), nn.Linear(32, 3)), [dict(type='LoRA', rank=2)])
    with pytest.raises(ValueError, match=r"trains the module '1', and peft takes '0.blocks.1' for it, whose name ends so, and leaves "
                                         r"'0.blocks.1.attn.qkv' without an adapter: give '1' a name of its own"):
        mmpetl.save_peft(net, str(tmp_path / 'net'))
    assert not (tmp_path / 'net').exists()


def test_layers_that_peft_chooses_by_number(tmp_path):
    plain, x = _plain('ViTForImageClassification'), _inputs('ViTForImageClassification')
    theirs = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(
        r=2, target_modules=['q_proj', 'fc1'], layers_to_transform=[1], modules_to_save=['classifier'], use_rslora=True))
    _move(theirs)
    ours = _both_ways(plain, theirs, x, tmp_path)
    assert all(list(m.layers) == [1] for m in _petl(ours).values())


def test_every_kind_of_peft_is_read_or_refused_by_name(tmp_path):
    known = set()
    for kind in peft.PeftType:
        model = _plain('timm ViT')
        folder = _folder(tmp_path / kind.value, peft_type=kind.value)
        if kind.value == 'LORA':
            mmpetl.load_peft(model, folder)
            known.add(kind.value)
            continue
        with pytest.raises(ValueError) as error:
            mmpetl.load_peft(model, folder)
        assert '\n' not in str(error.value)
        if f"peft_type '{kind.value}' is not read here" not in str(error.value):
            known.add(kind.value)
    assert known == {'LORA', 'ADALORA', 'LOHA', 'LOKR', 'IA3', 'VERA', 'OFT', 'BOFT', 'LN_TUNING'}
    with pytest.raises(ValueError, match='PREFIX_TUNING.*prompts of language models'):
        mmpetl.load_peft(_plain('timm ViT'), str(tmp_path / 'PREFIX_TUNING'))


@pytest.mark.parametrize('tune, message', [
    (['cls_token'], 'also changes cls_token'), (['blocks.0.attn.qkv.weight'], 'also changes blocks.0.attn.qkv.weight'),
    (['blocks.0.mlp.fc1.*'], None),
])
def test_tuned_parameters_that_peft_cannot_save(tune, message, tmp_path):
    model = mmpetl.attach(_plain('timm ViT'), [dict(type='LoRA', rank=2)], tune=tune)
    if message is None:
        mmpetl.save_peft(model, str(tmp_path))
        assert 'blocks.0.mlp.fc1' in json.loads((tmp_path / 'adapter_config.json').read_text())['modules_to_save']
        return
    with pytest.raises(ValueError, match=message) as error:
        mmpetl.save_peft(model, str(tmp_path))
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize('change', ['narrow', 'wide', 'one'])
def test_factors_of_another_width_are_refused(change, tmp_path):
    """Before the model is touched; a factor of one column is not spread out."""
    folder = _folder(tmp_path)
    tensors = load_file(f'{folder}/adapter_model.safetensors')
    width = dict(narrow=16, wide=40, one=1)[change]
    save_file({k: t.new_ones(len(t), width) if 'fc1.lora_A' in k or 'qkv.lora_A' in k else t for k, t in tensors.items()},
              f'{folder}/adapter_model.safetensors')
    model = _plain('timm ViT')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=f'{width}') as error:
        mmpetl.load_peft(model, folder)
    assert '\n' not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def _folder(tmp_path, **changes):
    model = mmpetl.attach(_plain('timm ViT'), [dict(type='LoRA', rank=2)])
    mmpetl.save_peft(model, str(tmp_path))
    path = tmp_path / 'adapter_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(tmp_path)


@pytest.mark.parametrize('changes, message', [
    (dict(use_dora=True), 'has not all factors of a DoRA'),
    (dict(bias='some'), "bias='some'"),
    (dict(peft_type='XLORA'), "peft_type 'XLORA'"),
    (dict(lora_bias=True), 'lora_bias=True'),
    (dict(target_parameters=['x']), 'target_parameters'),
    (dict(anything_new=1), 'anything_new=1 is not read here'),
    (dict(peft_type='LOHA'), 'lora_alpha=4.0 is not read here'),
    (dict(init_lora_weights='pissa'), 'changes the base'),
    *((dict(alpha_pattern={pattern: 2}), 'is an expression that is not tried') for pattern in (
        '(a+)+$', '(b|b)' * 40, 'b?' * 30 + 'b' * 30, '.*' * 40 + 'x', '(?=b)blocks', '(', r'(b)\1', 'b{9}', '*')),
    (dict(rank_pattern={f'.*b{i}.*.*qkv': 4 for i in range(3000)}), 'rank_pattern has too many expressions'),
    (dict(target_modules=['head']), "adapter_config.json: target_modules=.'head'. leaves out 2 of 2 layers that have tensors, such as "
                                    "'blocks.0.attn.qkv', and none is left: mend target_modules"),
    *(({key: value}, f'adapter_config.json: {key}=.* names no layers .give a list of names') for key, value in (
        ('target_modules', 3), ('target_modules', {'qkv': 1}), ('exclude_modules', [1]), ('modules_to_save', True),
        ('layers_pattern', 0))),
    *((dict(layers_to_transform=value), 'adapter_config.json: layers_to_transform=.* .give a list of numbers from 0') for value in (
        'x', -1, True, [1.5], {'a': 1})),
    *((dict(lora_dropout=value), 'adapter_config.json: lora_dropout=.* is no share .give a number') for value in (
        'x', [1], 1, -0.1)),
    (dict(modules_to_save=['norm']), "adapter_config.json: modules_to_save names 'norm', and the tensors lack norm.weight .save the"),
    (dict(alpha_pattern=['qkv']), 'is not a table'),
    (dict(lora_alpha='16'), 'not a number'),
    (dict(r=3), 'states rank 3 for blocks.0.attn.qkv, whose tensors have rank 4 .set r=4'),
    (dict(rank_pattern={'blocks.1.attn.qkv': 2}), 'states rank 2 for blocks.1.attn.qkv, whose tensors have rank 4'),
    (dict(auto_map={'x': 'os.system'}), 'auto_map'),
    (dict(layer_replication=[[0, 2]]), 'layer_replication'),
])
def test_settings_that_are_not_known_are_refused(changes, message, tmp_path):
    model = _plain('timm ViT')
    with pytest.raises(ValueError, match=message) as error:
        mmpetl.load_peft(model, _folder(tmp_path, **changes))
    assert '\n' not in str(error.value)


#: Expressions of ranks and alphas -> the rank that the first of them gives ``blocks.0.attn.qkv``.
EXPRESSIONS = {
    'anything before': ({r'.*\.attn\.qkv': 3}, 3), 'from the start': ({r'^blocks.0.attn.qkv': 3, 'qkv': 4}, 3),
    'numbers': ({r'blocks\.[1-9]\.attn\.qkv': 3}, 2), 'alternatives': ({r'blocks.\d+.(?:attn|mlp)\.(qkv|fc1)': 3}, 3),
    'the first counts': ({'fc1': 4, r'.*0.attn.*': 3, 'qkv': 4}, 3), 'one or the other': ({'fc1|qkv': 3}, 3),
    'a part does not do': ({'attn|.*0': 3}, 2), 'an end': ({r'.*tn.qkv$': 3}, 3)}


@pytest.mark.parametrize('name', EXPRESSIONS)
def test_expressions_mean_what_they_mean_to_peft(name, tmp_path):
    patterns, rank = EXPRESSIONS[name]
    plain, x = _plain('timm ViT'), _inputs('timm ViT')
    theirs = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=['qkv', 'fc1'], rank_pattern=patterns, alpha_pattern={k: 5 for k in patterns}))
    _move(theirs)
    theirs.save_pretrained(str(tmp_path))
    ours = copy.deepcopy(plain)
    mmpetl.load_peft(ours, str(tmp_path))
    assert (_output(ours, x) - _output(theirs, x)).abs().max() <= 2e-5
    found, = {m.scales[0] for m in _petl(ours).values() if m.ops == ('q', )}
    assert found == pytest.approx(5 / 3 if rank == 3 else 3 / 2)
    path = tmp_path / 'adapter_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'rank_pattern': {'.*[.]0.*qkv': 7}}))
    with pytest.raises(ValueError, match=f'states rank 7 for blocks.0.attn.qkv, whose tensors have rank {rank}'):
        mmpetl.load_peft(copy.deepcopy(plain), str(tmp_path))


@pytest.mark.parametrize('pattern', [r'.*.*.*\.q', r'\w*\w*\w*x', '(b|b|b)' * 8 + 'x', '.*' * 6 + 'x', '(.*|b|b)(q|k|v).*x'])
def test_bounded_expressions_end_at_once(pattern):
    """The costliest that are run, on the names of a model of 24 blocks."""
    names, start = [f'blocks.{i}.attn.qkv' for i in range(24)], time.process_time()
    assert by_layer('folder', dict(rank_pattern={pattern: 3}), 'rank_pattern', names) in ({}, dict.fromkeys(names, 3))
    assert time.process_time() - start < 2


@pytest.mark.parametrize('targets', [['qkv'], ['blocks.0.attn.qkv', 'blocks.1.attn.qkv'], r'.*\.attn\.(qkv|proj)', 'all'])
def test_tensors_outside_target_modules_are_left_out_as_peft_does(targets, tmp_path, monkeypatch):
    plain, x, said = _plain('timm ViT'), _inputs('timm ViT'), []
    theirs = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(r=2, target_modules=['qkv', 'fc1']))
    _move(theirs)
    theirs.save_pretrained(str(tmp_path))
    path = tmp_path / 'adapter_config.json'
    more = dict(exclude_modules='.*fc1', target_modules=r'.*(qkv|fc1)') if targets == 'all' else dict(target_modules=targets)
    setting = 'exclude_modules' if targets == 'all' else 'target_modules'
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    monkeypatch.setattr('mmpetl.adapters.peft_folder.print_log', lambda text, *_: said.append(text))
    ours = copy.deepcopy(plain)
    mmpetl.load_peft(ours, str(tmp_path))
    again = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path))
    assert (_output(ours, x) - _output(again, x)).abs().max() <= 2e-5 < (_output(ours, x) - _output(theirs, x)).abs().max()
    line, = (text for text in said if 'leaves out' in text)
    assert f'{setting}=' in line and "leaves out 2 of 4 layers that have tensors, such as 'blocks.0.mlp.fc1'" in line
    assert f'mend {setting}' in line and any('proj' in text for text in said) == ('proj' in str(targets))  # named, and lacking
    said.clear()  # an expression that is not tried takes all
    path.write_text(json.dumps({**json.loads(path.read_text()), 'target_modules': '(?=b).*', 'exclude_modules': None}))
    ours = copy.deepcopy(plain)
    mmpetl.load_peft(ours, str(tmp_path))
    assert (_output(ours, x) - _output(theirs, x)).abs().max() <= 2e-5 and len(said) == 1


#: kind -> its folder; base -> settings that name blocks.
NUMBERED = {'LORA': lambda t: peft.LoraConfig(r=2, target_modules=t), 'IA3': lambda t: peft.IA3Config(target_modules=t, feedforward_modules=[]),
            'LOHA': lambda t: peft.LoHaConfig(r=2, target_modules=t), 'VERA': lambda t: peft.VeraConfig(r=4, target_modules=t, save_projection=True)}
NUMBERS = [
    ('ViTForImageClassification', dict(layers_to_transform=[1])), ('ViTForImageClassification', dict(layers_to_transform=0)),
    ('ViTForImageClassification', dict(layers_to_transform=[0], layers_pattern='layers')),
    ('ViTForImageClassification', dict(layers_to_transform=[0], target_modules=['vit.layers.1.mlp.fc1', 'q_proj'])),
    ('timm ViT', dict(layers_to_transform=[1], layers_pattern=['layer', 'block.'])),
    ('mmpretrain Swin', dict(layers_to_transform=[1])), ('mmpretrain Swin', dict(layers_to_transform=[1], layers_pattern='stages')),
]


@pytest.mark.parametrize('name, changes, kind', [
    *((name, changes, 'LORA') for name, changes in NUMBERS), *((*NUMBERS[0], kind) for kind in NUMBERED if kind != 'LORA')])
def test_blocks_outside_layers_to_transform_are_left_out_as_peft_does(name, changes, kind, tmp_path, monkeypatch):
    """The tensors of all layers beside a config that names blocks, by number and by a pattern before it."""
    plain, x, said = _plain(name), _inputs(name), []
    theirs = peft.get_peft_model(copy.deepcopy(plain), NUMBERED[kind](['q_proj', 'fc1'] if 'ViTFor' in name else ['qkv']))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    theirs.save_pretrained(str(tmp_path))
    path = tmp_path / 'adapter_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    again = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path)).train(False)
    monkeypatch.setattr('mmpetl.adapters.peft_folder.print_log', lambda text, *_: said.append(text))
    ours = copy.deepcopy(plain)
    mmpetl.load_peft(ours, str(tmp_path))
    ours.train(False)
    assert (_output(ours, x) - _output(again, x)).abs().max() <= 1e-6 < (_output(ours, x) - _output(plain, x)).abs().max()
    if kind != 'IA3':  # which knows no blocks
        assert (_output(ours, x) - _output(theirs.train(False), x)).abs().max() > 1e-6
        assert any(f'layers_to_transform={changes["layers_to_transform"]}' in text and 'leaves out' in text for text in said)


@pytest.mark.parametrize('kind, config', [
    ('LORA', dict(r=8, lora_alpha=8)), ('LOHA', dict(r=8, alpha=8)), ('LOKR', dict(r=8, alpha=8)), ('ADALORA', dict(init_r=12, lora_alpha=8))])
def test_settings_that_a_folder_lacks_are_what_peft_takes(kind, config, tmp_path):
    """Folders of other versions have fewer settings; their tensors may be in a pickle, which is read without running it."""
    plain, x = _plain('timm ViT'), _inputs('timm ViT')
    make = dict(LORA=peft.LoraConfig, LOHA=peft.LoHaConfig, LOKR=peft.LoKrConfig,
                ADALORA=lambda **more: peft.AdaLoraConfig(total_step=9, **more))[kind]
    theirs = peft.get_peft_model(copy.deepcopy(plain), make(target_modules=['fc1'], **config))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    theirs.train(False).save_pretrained(str(tmp_path))
    path = tmp_path / 'adapter_config.json'
    path.write_text(json.dumps(dict(peft_type=kind, target_modules=['fc1'])))
    ours = copy.deepcopy(plain)
    mmpetl.load_peft(ours, str(tmp_path))
    ours.train(False)
    _close(_output(theirs, x), _output(ours, x), _output(plain, x))
    torch.save(load_file(str(tmp_path / 'adapter_model.safetensors')), tmp_path / 'adapter_model.bin')
    (tmp_path / 'adapter_model.safetensors').unlink()
    again = copy.deepcopy(plain)
    mmpetl.load_peft(again, str(tmp_path))
    again.train(False)
    assert torch.equal(_output(again, x), _output(ours, x))


def test_the_folder_of_a_named_adapter_is_said(tmp_path):
    theirs = peft.get_peft_model(_plain('timm ViT'), peft.LoraConfig(r=2, target_modules=['fc1']), adapter_name='mine')
    theirs.save_pretrained(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f'name a folder of peft, such as {tmp_path / "mine"}, which'):
        mmpetl.load_peft(_plain('timm ViT'), str(tmp_path))


def test_norms_outside_target_modules_are_left_out_as_peft_does(tmp_path):
    plain, x = _plain('ViTForImageClassification'), _inputs('ViTForImageClassification')
    theirs = peft.get_peft_model(copy.deepcopy(plain), peft.LNTuningConfig(target_modules=_norms(plain)))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    theirs.save_pretrained(str(tmp_path))
    path = tmp_path / 'adapter_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'target_modules': _norms(plain)[:1]}))
    again = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path)).train(False)
    ours = copy.deepcopy(plain)
    mmpetl.load_peft(ours, str(tmp_path))
    _close(_output(again, x), _output(ours, x), _output(plain, x))


def test_patterns_by_the_names_of_another_version(tmp_path):
    """Ranks and alphas of layers are found by the names that the folder's tensors have, not by the model's alone."""
    at = 'vit.encoder.layer.{}.attention.attention.query'
    state = {}
    for block, rank in ((0, 3), (1, 2)):
        state[f'base_model.model.{at.format(block)}.lora_A.weight'] = torch.randn(rank, 32)
        state[f'base_model.model.{at.format(block)}.lora_B.weight'] = torch.randn(32, rank)
    save_file(state, str(tmp_path / 'adapter_model.safetensors'))
    (tmp_path / 'adapter_config.json').write_text(json.dumps(dict(
        peft_type='LORA', r=2, lora_alpha=4, target_modules=['query'], rank_pattern={at.format(0): 3},
        alpha_pattern={at.format(0): 12})))
    model = _plain('ViTForImageClassification')
    mmpetl.load_peft(model, str(tmp_path))
    method, = _petl(model).values()
    assert dict(method.scales) == {0: 12 / 3, 1: 4 / 2}


def test_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match='has no adapted layer'):
        mmpetl.load_peft(_plain('CLIPVisionModel'), _folder(tmp_path))
    model = mmpetl.attach(_plain('timm ViT'), [dict(type='LoRA')])
    with pytest.raises(ValueError, match='already holds lora'):
        mmpetl.load_peft(model, _folder(tmp_path))
    with pytest.raises(FileNotFoundError, match='adapter_config.json'):
        mmpetl.load_peft(_plain('timm ViT'), str(tmp_path / 'nothing'))


def test_layers_that_peft_does_not_reach_are_refused(tmp_path):
    """timm's EVA and mmaction2's VideoMAE multiply by the fused weight itself: peft would change nothing there."""
    for model in (_eva(), BACKBONE['videomae'].build_upstream()):
        mmpetl.attach(model, [dict(type='LoRA', rank=2)])
        with pytest.raises(ValueError, match='peft has no effect'):
            mmpetl.save_peft(model, str(tmp_path))


def test_other_methods_are_refused(tmp_path):
    model = mmpetl.attach(_plain('timm ViT'), [dict(type='VPT', num_tokens=2)])
    with pytest.raises(ValueError, match='this model holds VPT'):
        mmpetl.save_peft(model, str(tmp_path))


def test_a_trunk_reads_the_folder_of_its_classifier(tmp_path):
    model = mmpetl.attach(_plain('ViTForImageClassification'), [dict(type='LoRA', rank=2)])
    perturb(model.vit.petl)
    mmpetl.save_peft(model, str(tmp_path))
    held = mmpetl.load_peft(_plain('ViTForImageClassification'), str(tmp_path))
    assert held['modules_to_save'] == ['classifier']
    tower = _plain('ViTForImageClassification').vit
    with pytest.raises(ValueError, match='classifier.* is neither a factor nor a parameter of the head'):
        mmpetl.load_peft(tower, str(tmp_path))


@pytest.mark.parametrize('name', ['VJEPA2ForVideoClassification', 'CLIPModel'])
def test_heads_with_modules_inside(name, tmp_path):
    """A pooler with attention, a whole text tower and a bare temperature: the outermost module is saved once."""
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=9)
    video = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, crop_size=32, patch_size=8,
                 frames_per_clip=4, pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2,
                 num_pooler_layers=1, num_labels=3)

    def make():
        torch.manual_seed(0)
        if name == 'CLIPModel':
            return transformers.CLIPModel(transformers.CLIPConfig(vision_config=HF, text_config=text, projection_dim=16))
        return transformers.VJEPA2ForVideoClassification(transformers.VJEPA2Config(**video))

    x = torch.randn(2, 4, 3, 32, 32) if name != 'CLIPModel' else torch.randn(2, 3, 32, 32)
    inputs = dict(pixel_values_videos=x) if name != 'CLIPModel' else dict(
        pixel_values=x, input_ids=torch.tensor([[1, 2, 3]]))

    @torch.no_grad()
    def output(model):
        out = model.eval()(**inputs)
        return out.logits_per_image if name == 'CLIPModel' else out.logits

    ours, other = mmpetl.attach(make(), [dict(type='LoRA', rank=2, ops='qv')]), make()
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    mmpetl.save_peft(ours, str(tmp_path))
    mmpetl.load_peft(other, str(tmp_path))
    theirs = peft.PeftModel.from_pretrained(make(), str(tmp_path))
    expected = output(ours)
    assert (expected - output(make())).abs().max() > 1e-3
    assert max((output(m) - expected).abs().max() for m in (other, theirs)) <= 1e-6 * max(1, expected.abs().max())
