# SPDX-License-Identifier: Apache-2.0
"""Objects of timm and transformers: what the generic rows do not say."""

import copy
import sys
import warnings

import pytest
import torch
from cases import perturb
from torch import nn

import mmpetl
from mmpetl.registry import MODELS

timm = pytest.importorskip('timm')
transformers = pytest.importorskip('transformers')
warnings.filterwarnings('ignore')

TIMM = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.)
HF = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8)
ALL_OPS = [dict(type='LoRA', rank=2, ops='q,k,v,proj,fc1,fc2'), dict(type='SSF')]


def _vit(**kwargs):
    return timm.models.vision_transformer.VisionTransformer(**{**TIMM, **kwargs})


def _eva(**kwargs):
    return timm.models.eva.Eva(**{**TIMM, 'num_classes': 0, **kwargs})


def _hf(model, config, **kwargs):
    settings = {**HF, **kwargs}
    if 'mlp_ratio' in kwargs:
        del settings['intermediate_size']
    return getattr(transformers, model)(getattr(transformers, config)(**settings))


#: Short rows: name -> a tiny model of the class.
MODEL = {
    'augreg': lambda: _vit(num_classes=5),
    'deit3': lambda: _vit(init_values=0.5, no_embed_class=True, num_classes=5),
    'dinov2': lambda: _vit(init_values=0.5, reg_tokens=4, no_embed_class=True, num_classes=0),
    'siglip': lambda: _vit(class_token=False, global_pool='map', num_classes=0),
    'clip': lambda: _vit(pre_norm=True, act_layer='quick_gelu', num_classes=0),
    'qk_norm': lambda: _vit(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True, global_pool='avg', num_classes=0),
    'dynamic': lambda: _vit(dynamic_img_size=True, num_classes=0),
    'eva02': lambda: _eva(use_rot_pos_emb=True, swiglu_mlp=True),
    'eva_unfused': lambda: _eva(use_rot_pos_emb=True, qkv_fused=False, global_pool='token'),
    'dinov3': lambda: _eva(use_rot_pos_emb=True, rope_type='dinov3', rope_rotate_half=True, attn_type='rope',
                           num_reg_tokens=4, use_abs_pos_emb=False, init_values=0.5),
    'rope_mixed': lambda: _eva(use_rot_pos_emb=True, rope_type='mixed', attn_type='rope', qk_norm=True),
    'dinov2_gated': lambda: _vit(mlp_layer=timm.layers.SwiGLUPacked, num_classes=0),
    'Dinov2Model gated': lambda: _hf('Dinov2Model', 'Dinov2Config', mlp_ratio=2, use_swiglu_ffn=True),
    'DINOv3ViTModel': lambda: _hf('DINOv3ViTModel', 'DINOv3ViTConfig', num_register_tokens=2, use_gated_mlp=True),
    'ViTModel': lambda: _hf('ViTModel', 'ViTConfig'),
    'DeiTModel': lambda: _hf('DeiTModel', 'DeiTConfig'),
    'ViTMSNModel': lambda: _hf('ViTMSNModel', 'ViTMSNConfig'),
    'IJepaModel': lambda: _hf('IJepaModel', 'IJepaConfig'),
    'Dinov2Model': lambda: _hf('Dinov2Model', 'Dinov2Config', mlp_ratio=2),
    'Dinov2WithRegistersModel': lambda: _hf('Dinov2WithRegistersModel', 'Dinov2WithRegistersConfig', mlp_ratio=2),
    'CLIPVisionModel': lambda: _hf('CLIPVisionModel', 'CLIPVisionConfig'),
    'SiglipVisionModel': lambda: _hf('SiglipVisionModel', 'SiglipVisionConfig'),
    'VivitModel': lambda: _hf('VivitModel', 'VivitConfig', num_frames=4, tubelet_size=[2, 8, 8]),
    'Dinov2Backbone': lambda: _hf('Dinov2Backbone', 'Dinov2Config', mlp_ratio=2, out_features=['stage1', 'stage2']),
    'Dinov2WithRegistersBackbone': lambda: _hf('Dinov2WithRegistersBackbone', 'Dinov2WithRegistersConfig', mlp_ratio=2,
                                               out_features=['stage1', 'stage2']),
    'DINOv3ViTBackbone': lambda: _hf('DINOv3ViTBackbone', 'DINOv3ViTConfig', num_register_tokens=2,
                                     out_features=['stage1', 'stage2']),
    'rms_norms': lambda: _vit(norm_layer='rmsnorm', embed_norm_layer='rmsnorm', num_classes=0),
}


GATED = ('eva02', 'dinov2_gated', 'Dinov2Model gated', 'DINOv3ViTModel')
#: Where the shift of SSF has no place: keys without a bias behind a rotation, norms and embeddings without one.
NO_SHIFT = ('eva02', 'eva_unfused', 'DINOv3ViTModel', 'DINOv3ViTBackbone', 'rms_norms')


def _model(name):
    torch.manual_seed(0)
    model = MODEL[name]().eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def _inputs(name, size=32):
    torch.manual_seed(1)
    return torch.randn(2, 4, 3, size, size) if name == 'VivitModel' else torch.randn(2, 3, size, size)


@torch.no_grad()
def _outputs(model, x):
    out = model(x)
    found = [out] if torch.is_tensor(out) else list(out.values()) if hasattr(out, 'values') else [out]
    # Backbones for dense prediction give their maps in a tuple.
    return [t for part in found if part is not None for t in (part if isinstance(part, tuple) else [part])]


def _difference(a, b):
    assert [t.shape for t in a] == [t.shape for t in b]
    return max((s - t).abs().max().item() for s, t in zip(a, b))


@pytest.mark.parametrize('name', MODEL)
def test_object(name, tmp_path):
    """Empty: equal to the bit; LoRA on all ops and SSF: merged into the plain model, and through a file."""
    plain, x = _model(name), _inputs(name)
    expected = _outputs(plain, x)
    assert _difference(_outputs(mmpetl.attach(copy.deepcopy(plain)).eval(), x), expected) == 0.
    petl = [dict(ALL_OPS[0], ops='q,k,v,proj,fc1,fc2,gate'), ALL_OPS[1]] if name in GATED else ALL_OPS
    petl = petl[:1] if name in NO_SHIFT else petl
    model = mmpetl.attach(copy.deepcopy(plain), petl).eval()
    perturb(model.petl, 0.02)
    adapted = _outputs(model, x)
    assert _difference(adapted, expected) > 1e-4
    mmpetl.save_adapter(model, str(tmp_path / 'a.safetensors'))
    other = copy.deepcopy(plain)
    mmpetl.load_adapter(other, str(tmp_path / 'a.safetensors'))
    assert _difference(_outputs(other.eval(), x), adapted) == 0.
    mmpetl.merge(model, verify=True)
    fresh = _model(name)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert _difference(_outputs(fresh, x), adapted) <= 2e-5 * max(1, max(t.abs().max() for t in adapted))


def test_prompts_meet_normed_keys_as_tokens_do():
    """Prompts that act as keys and values only equal prompts that travel in the stream, under qk-norm too."""
    model, x = mmpetl.attach(_model('qk_norm'), [dict(type='VPT', num_tokens=3, pool_prompts=False)]).eval(), _inputs('')
    short = _outputs(model, x)
    model.petl.full_prompts = True
    model.petl.refresh()
    assert _difference(_outputs(model, x), short) <= 1e-5


@pytest.mark.parametrize('name', ['eva02', 'DINOv3ViTModel'])
def test_a_shift_of_keys_that_are_rotated_does_not_cancel(name):
    model = mmpetl.attach(_model(name), [dict(type='SSF')])
    perturb(model.petl)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='k of block 0 has no bias that could hold the shift'):
        mmpetl.merge(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('name', ['eva02', 'DINOv3ViTModel'])
def test_prompts_are_not_rotated(name):
    """They have no place in the grid, so in the stream and as keys and values only they are the same."""
    model, x = mmpetl.attach(_model(name), [dict(type='VPT', num_tokens=3, pool_prompts=False)]).eval(), _inputs('')
    short = _outputs(model, x)
    model.petl.full_prompts = True
    model.petl.refresh()
    assert _difference([_outputs(model, x)[-1]], [short[-1]]) <= 1e-5


def test_other_input_size():
    plain, x = _model('dynamic'), _inputs('', 48)
    model = mmpetl.attach(copy.deepcopy(plain), [dict(type='LoRA', rank=2)]).eval()
    assert _difference(_outputs(model, x), _outputs(plain, x)) == 0.


class Net(nn.Module):
    """A user's own module around a base."""

    def __init__(self, trunk):
        super().__init__()
        self.encoder, self.classifier = trunk, nn.Linear(32, 3)

    def forward(self, x):
        return self.classifier(self.encoder(x))


def test_inside_any_module(tmp_path):
    net = mmpetl.attach(Net(_model('dinov2')), [dict(type='LoRA', rank=2)])
    trains = {n for n, p in net.named_parameters() if p.requires_grad}
    assert all(n.startswith(('encoder.petl.', 'classifier.')) for n in trains) and len(trains) == 2 * 4 + 2
    assert mmpetl.summary(net).head == 32 * 3 + 3
    perturb(net.encoder.petl), perturb(net.classifier)
    mmpetl.save_adapter(net, str(tmp_path / 'a.safetensors'))
    other = Net(_model('dinov2'))
    mmpetl.load_adapter(other, str(tmp_path / 'a.safetensors'))
    x = _inputs('')
    assert _difference(_outputs(other.eval(), x), _outputs(net.eval(), x)) == 0.
    bare = _model('dinov2')
    mmpetl.load_adapter(bare, str(tmp_path / 'a.safetensors'))
    assert _difference(_outputs(bare.eval(), x), _outputs(net.encoder, x)) == 0.


def test_two_trunks_are_not_guessed():
    with pytest.raises(ValueError, match=r'several backbones.*there are 0, 1'):
        mmpetl.attach(nn.Sequential(_model('dinov2'), _model('clip')))


def test_head_of_a_timm_model_trains_and_travels(tmp_path):
    model = mmpetl.attach(_model('augreg'), [dict(type='LoRA', rank=2)])
    counted = mmpetl.summary(model)
    assert counted.head == 32 * 5 + 5 and counted.without_head == 2 * 2 * 2 * 64
    perturb(model.head)
    mmpetl.save_adapter(model, str(tmp_path / 'a.safetensors'))
    other = _model('augreg')
    header = mmpetl.load_adapter(other, str(tmp_path / 'a.safetensors'))
    assert header['head'] == ['head.weight', 'head.bias'] and torch.equal(other.head.weight, model.head.weight)
    wrong = _vit(num_classes=7)
    wrong.load_state_dict({k: v for k, v in _model('augreg').state_dict().items() if 'head' not in k}, strict=False)
    with pytest.raises(ValueError, match='number of classes'):
        mmpetl.load_adapter(wrong, str(tmp_path / 'a.safetensors'))


@pytest.mark.parametrize('change, path', [
    (dict(block_fn=timm.models.vision_transformer.ParallelScalingBlock), r'blocks\.0, a ParallelScalingBlock'),
    (dict(block_fn=timm.models.vision_transformer.ResPostBlock), r'blocks\.0, a ResPostBlock'),
    (dict(attn_layer='diff'), r'blocks\.0\.attn, a DiffAttention'),
    (dict(patch_drop_rate=0.5), r'patch_drop \(PatchDropout\)'),
])
def test_what_is_undefined_is_refused_by_path(change, path):
    model = _vit(**change)
    before = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=path):
        mmpetl.attach(model, [dict(type='LoRA')])
    assert [type(m) for m in model.modules()] == before, 'a refused model must stay as it was'


def test_side_methods_over_normed_heads_are_refused():
    with pytest.raises(ValueError, match=r'blocks\.0\.attn\.q_norm .*side methods'):
        mmpetl.attach(_model('qk_norm'), [dict(type='SynQT', num_tokens=2, mid_dims=4, qsm_mid_dims=2)])


def test_masks_are_refused():
    model = mmpetl.attach(_model('augreg'), [dict(type='LoRA', rank=2)])
    with pytest.raises(ValueError, match='attention masks'):
        model(_inputs(''), attn_mask=torch.zeros(17, 17))
    tower = mmpetl.attach(_model('ViTModel'), [dict(type='LoRA', rank=2)])
    with pytest.raises(ValueError, match='attention masks'):
        tower(_inputs(''), attention_mask=torch.tensor([[1] * 16 + [0]] * 2))


@pytest.mark.parametrize('name', ['timm', 'transformers'])
def test_absent_library_is_one_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    kind = 'TIMM' if name == 'timm' else 'HF'
    with pytest.raises(ValueError, match=f'mmpetl.{kind} needs the package {name}: pip install {name}'):
        MODELS.build(dict(type=f'mmpetl.{kind}', model_name='vit_tiny_patch16_224'))


@pytest.mark.parametrize('cfg, message', [
    (dict(type='mmpetl.TIMM', model_name='vit_tiny_patch61_224'), 'timm has no model .*vit_tiny_patch16_224'),
    (dict(type='mmpetl.TIMM', model_name='resnet18'), 'ResNet cannot be adapted'),
    (dict(type='mmpetl.TIMM', model_name='vit_tiny_patch16_224', out_type='cls'), "unknown out_type 'cls'"),
    (dict(type='mmpetl.HF', config=dict(model_type='bert')), "model_type 'bert'"),
    (dict(type='mmpetl.HF'), "needs model_name='...' or config"),
])
def test_wrong_config_is_one_line(cfg, message):
    with pytest.raises(ValueError, match=message) as error:
        MODELS.build(cfg)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('backbone', [
    dict(type='mmpetl.TIMM', model_name='vit_tiny_patch16_224', **TIMM),
    dict(type='mmpetl.HF', config=dict(model_type='dinov2', mlp_ratio=2, **HF)),
], ids=lambda b: b['type'])
def test_in_a_classifier_of_mmpretrain(backbone, tmp_path):
    """Weights come from init_cfg, not from upstream's initialiser, and one step trains methods and head only."""
    from mmpretrain.structures import DataSample
    cfg = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(backbone, petl=[dict(type='LoRA', rank=2)]),
        head=dict(type='mmpretrain.LinearClsHead', in_channels=32, num_classes=3))
    source = MODELS.build(cfg).backbone
    perturb(source, 0.1)
    weights = {k: v for k, v in source.state_dict().items() if not k.startswith('petl.')}
    torch.save(weights, tmp_path / 'base.pth')
    cfg['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=str(tmp_path / 'base.pth'))
    model = MODELS.build(cfg)
    model.init_weights()
    assert all(torch.equal(v, model.backbone.state_dict()[k]) for k, v in weights.items())
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    model.train()
    model(_inputs(''), samples, mode='loss')['loss'].backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None}
    assert moved == {n for n, _ in model.named_parameters() if n.startswith(('backbone.petl.', 'head.'))}
    with pytest.raises(ValueError, match='tensors of .* do not fit'):
        model.backbone.load_state_dict({'something': torch.zeros(1)}, strict=False)


def _classifier():
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**HF, num_labels=3))


def test_trainer_and_save_pretrained(tmp_path, monkeypatch):
    """transformers.Trainer trains methods and classifier; the merged model is one that from_pretrained opens."""
    # It takes the folder tests/datasets for the package of that name.
    monkeypatch.setattr('transformers.trainer.is_datasets_available', lambda: False)
    model = mmpetl.attach(_classifier(), [dict(type='LoRA', rank=2, ops='qv')])
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    data = [dict(pixel_values=torch.randn(3, 32, 32), labels=i % 3) for i in range(8)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / 'run'), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[],
        save_strategy='steps', save_steps=2, use_cpu=True, disable_tqdm=True)
    transformers.Trainer(model=model, args=arguments, train_dataset=data).train()
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert all((p != 0).any() for n, p in model.named_parameters() if n.endswith('.up'))
    again = mmpetl.attach(_classifier(), [dict(type='LoRA', rank=2, ops='qv')])
    resumed = transformers.Trainer(model=again, args=arguments, train_dataset=data)
    resumed.train(resume_from_checkpoint=str(tmp_path / 'run' / 'checkpoint-2'))
    x = _inputs('')
    assert _difference(_outputs(again.eval(), x), _outputs(model.eval(), x)) == 0.
    expected = _outputs(model, x)
    mmpetl.merge(model, verify=True)
    model.save_pretrained(tmp_path / 'merged')
    opened = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / 'merged').eval()
    assert type(opened) is transformers.ViTForImageClassification
    assert _difference(_outputs(opened, x), expected) <= 1e-5
    tower = MODELS.build(dict(type='mmpetl.HF', model_name=str(tmp_path / 'merged')))
    assert torch.equal(tower.layers[0].mlp.fc1.weight, opened.vit.layers[0].mlp.fc1.weight)


def test_checkpointing_and_initialisers_of_transformers():
    """gradient_checkpointing_enable changes no gradient, and init_weights leaves methods alone."""
    gradients = []
    for on in (False, True):
        model = mmpetl.attach(_classifier(), [dict(type='AdaptFormer', mid_dims=4)]).double().train()
        before = {n: p.clone() for n, p in model.vit.petl.named_parameters()}
        model.init_weights()
        assert all(torch.equal(p, before[n]) for n, p in model.vit.petl.named_parameters())
        perturb(model.vit.petl)
        if on:
            model.gradient_checkpointing_enable()
        model(_inputs('').double(), labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([p.grad for p in model.vit.petl.parameters()])
    assert _difference(*gradients) <= 1e-12


def test_hidden_states_stay_available():
    plain, x = _model('Dinov2Model'), _inputs('')
    model = mmpetl.attach(copy.deepcopy(plain)).eval()
    with torch.no_grad():
        a, b = (m(x, output_hidden_states=True).hidden_states for m in (plain, model))
    assert len(a) == 3 and _difference(a, b) == 0.


@pytest.mark.parametrize('name', ['Dinov2Backbone', 'DINOv3ViTBackbone'])
def test_maps_have_no_prompts(name):
    """Deep prompts act as keys and values and leave the maps their size; those that would stand in them are refused."""
    model = mmpetl.attach(_model(name), [dict(type='VPT', num_tokens=3)]).eval()
    assert [tuple(t.shape) for t in _outputs(model, _inputs(''))] == [(2, 32, 4, 4)] * 2
    with pytest.raises(ValueError, match='prompts cannot travel in the stream'):
        mmpetl.attach(_model(name), [dict(type='VPT', num_tokens=3, deep=False)])
    with pytest.raises(ValueError, match=f'needs .*side|{name} is none of them'):
        mmpetl.attach(_model(name), [dict(type='LST')])


ATTENTIVE = {
    'Dinov2Model': lambda: _hf('Dinov2Model', 'Dinov2Config', mlp_ratio=2),
    'DINOv3ViTModel': MODEL['DINOv3ViTModel'],
    'CLIPVisionModel': MODEL['CLIPVisionModel'],
    'SwinBackbone': lambda: transformers.SwinBackbone(transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)),
    'VideoMAEModel': lambda: _hf('VideoMAEModel', 'VideoMAEConfig', num_frames=4, tubelet_size=2),
}


@pytest.mark.parametrize('how', ['argument', 'config'])
@pytest.mark.parametrize('name', ATTENTIVE)
def test_attention_weights_are_refused_and_not_left_out(name, how):
    """transformers takes what modules return, and would give none in silence."""
    model = mmpetl.attach(ATTENTIVE[name](), [dict(type='LoRA', rank=2)])
    model.set_attn_implementation('eager')
    x = _inputs('VivitModel' if name == 'VideoMAEModel' else '')
    if how == 'config':
        model.config.output_attentions = True
    with pytest.raises(ValueError, match='output_attentions is not supported once methods are attached; leave it out'):
        model(x, **(dict(output_attentions=True) if how == 'argument' else {}))


@pytest.mark.parametrize('name', ['Dinov2', 'Dinov2WithRegisters', 'DeiT', 'VideoMAE'])
def test_heads_of_transformers_read_a_side_feature(name):
    """Heads that read the class token, a second one, or the mean behind all registers: a number, and one that trains."""
    video = name == 'VideoMAE'
    more = dict(mlp_ratio=2) if 'Dinov2' in name else dict(num_frames=4, tubelet_size=2) if video else {}
    model = _hf(f'{name}For{"Video" if video else "Image"}Classification', f'{name}Config', num_labels=3, **more)
    mmpetl.attach(model, [dict(type='LST')])
    loss = model(_inputs('VivitModel' if video else ''), labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all()
                                   for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', ['augreg', 'eva02', 'DINOv3ViTModel', 'SiglipVisionModel', 'classifier'])
def test_a_base_that_comes_in_half_precision(name, dtype):
    """As from_pretrained opens files of that type: untouched outputs to the bit, methods and gradients in float32."""
    make = _classifier if name == 'classifier' else lambda: _model(name)
    plain, x = make().to(dtype).eval(), _inputs('').to(dtype)
    model = mmpetl.attach(copy.deepcopy(plain), [dict(type='LoRA', rank=2), dict(type='AdaptFormer', mid_dims=4)]).eval()
    tower = getattr(model, 'vit', model)
    expected = _outputs(plain, x)
    assert _difference(_outputs(model, x), expected) <= 0.05 * max(t.abs().max() for t in expected)
    with mmpetl.disabled(model):
        assert _difference(_outputs(model, x), expected) == 0.
    perturb(tower.petl, 0.3)
    outputs = _outputs(model, x)
    assert {t.dtype for t in outputs} == {dtype} and _difference(outputs, expected) > 0.
    wide = make()
    wide.load_state_dict({k: v for k, v in plain.state_dict().items()})
    wide = mmpetl.attach(wide, [dict(type='LoRA', rank=2), dict(type='AdaptFormer', mid_dims=4)]).eval()
    getattr(wide, 'vit', wide).petl.load_state_dict(tower.petl.state_dict())
    scale = max(t.abs().max() for t in outputs)
    assert _difference([t.float() for t in outputs], _outputs(wide, x.float())) <= 0.05 * scale
    (model.train()(x)[0] if hasattr(plain, 'config') else model.train()(x)).float().square().mean().backward()
    assert all(p.grad.dtype is torch.float32 and p.grad.isfinite().all() for p in tower.petl.parameters())
    assert sum(p.grad.abs().sum() for p in tower.petl.parameters()) > 0


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_merging_into_a_base_in_half_precision(dtype, tmp_path):
    """Merged and compared in float32, then rounded; what cannot be merged leaves every bit."""
    model, x = mmpetl.attach(_classifier().to(dtype), [dict(type='LoRA', rank=2)]).eval(), _inputs('').to(dtype)
    perturb(model.vit.petl, 0.3)
    wide = mmpetl.attach(_classifier().to(dtype).float(), [dict(type='LoRA', rank=2)]).eval()
    wide.vit.petl.load_state_dict(model.vit.petl.state_dict())
    adapted = _outputs(model, x)
    assert mmpetl.merge(model, probe=x).max_difference <= 1e-5
    mmpetl.merge(wide)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(torch.equal(p, q.to(dtype)) for p, q in zip(model.parameters(), wide.parameters()))
    assert _difference(_outputs(model, x), adapted) <= 0.05 * max(1, adapted[0].abs().max())
    model.save_pretrained(tmp_path)
    opened = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert opened.dtype is dtype and _difference(_outputs(opened, x), _outputs(model, x)) == 0.
    other = mmpetl.attach(_classifier().to(dtype), [dict(type='LoRA', rank=2)])
    perturb(other.vit.petl, 0.3)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match='more than the tolerance'):
        mmpetl.merge(other, tolerance=1e-12)
    assert all(torch.equal(v, before[n]) and v.dtype is before[n].dtype for n, v in other.state_dict().items())


def test_a_config_opens_files_in_half_precision_as_float32(tmp_path):
    """Heads of OpenMMLab are float32, and base_dtype says where the base is not."""
    MODEL['Dinov2Model']().to(torch.bfloat16).save_pretrained(tmp_path)
    backbone = dict(type='mmpetl.HF', model_name=str(tmp_path), petl=[dict(type='LoRA', rank=2)])
    head = dict(type='mmpretrain.LinearClsHead', in_channels=32, num_classes=3)
    model = MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.head(model.extract_feat(_inputs(''))).dtype is torch.float32
    assert next(MODELS.build(dict(backbone, dtype='bfloat16')).parameters()).dtype is torch.bfloat16


def test_copies_by_data_parallel_are_refused():
    """transformers.Trainer wraps a model so where it sees several devices and one process."""
    model = mmpetl.attach(_classifier(), [dict(type='LoRA', rank=2)])
    with pytest.raises(ValueError, match='DataParallel cannot copy .*torchrun.*CUDA_VISIBLE_DEVICES'):
        for module in model.modules():  # what torch.nn.parallel.replicate does first
            module._replicate_for_data_parallel()


def test_in_a_wrapper_that_renames_keys(tmp_path):
    """TimmWrapperForImageClassification has its own load_state_dict, which would lose an adapter's header."""
    def make():
        torch.manual_seed(0)
        return transformers.TimmWrapperForImageClassification(transformers.TimmWrapperConfig(
            architecture='vit_tiny_patch16_224', num_labels=3, model_args=dict(depth=2, img_size=32, patch_size=8)))

    model, x = mmpetl.attach(make(), [dict(type='LoRA', rank=2)]).eval(), _inputs('')
    perturb(model.timm_model.petl), perturb(model.timm_model.head)
    mmpetl.save_adapter(model, str(tmp_path / 'a.safetensors'))
    other = make()
    mmpetl.load_adapter(other, str(tmp_path / 'a.safetensors'))
    assert _difference(_outputs(other.eval(), x), _outputs(model, x)) == 0.


def test_tokens_of_timm_beside_a_side_method_are_refused():
    """They would be the base's alone: nothing would train, in silence."""
    model, plain, x = mmpetl.attach(_model('dinov2'), [dict(type='LST')]).eval(), _model('dinov2'), _inputs('')
    with pytest.raises(ValueError, match='LST gives one vector per picture .*not forward_features'):
        model.forward_features(x)
    assert _outputs(model, x)[0].shape == (2, 32)
    with mmpetl.disabled(model), torch.no_grad():
        assert torch.equal(model.forward_features(x), plain.forward_features(x))


def test_maps_of_timm_are_free_of_prompts_that_are_keys_alone():
    model = mmpetl.attach(_model('eva02'), [dict(type='VPT', num_tokens=3, pool_prompts=False)]).eval()
    with torch.no_grad():
        maps = model.forward_intermediates(_inputs(''), intermediates_only=True)
    assert [tuple(t.shape) for t in maps] == [(2, 32, 4, 4)] * 2


def _clip(cls='CLIPModel'):
    torch.manual_seed(0)
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=9)
    return getattr(transformers, cls)(transformers.CLIPConfig(vision_config=HF, text_config=text, projection_dim=16))


def test_one_tower_of_clip(tmp_path):
    """Attached whole, all that is not the vision tower is head; attached to the tower, the adapter is its own."""
    whole = mmpetl.attach(_clip(), [dict(type='LoRA', rank=2)])
    tower = sum(p.numel() for n, p in _clip().named_parameters() if n.startswith('vision_model.'))
    assert mmpetl.summary(whole).head == sum(p.numel() for p in _clip().parameters()) - tower
    model, other = _clip().requires_grad_(False), _clip()
    mmpetl.attach(model.vision_model, [dict(type='LoRA', rank=2)])
    counted = mmpetl.summary(model.vision_model)
    assert counted.total == counted.without_head == sum(p.numel() for p in model.parameters() if p.requires_grad)
    perturb(model.vision_model.petl)
    mmpetl.save_adapter(model.vision_model, str(tmp_path / 'a.safetensors'))
    mmpetl.load_adapter(other.vision_model, str(tmp_path / 'a.safetensors'))
    inputs = dict(pixel_values=_inputs(''), input_ids=torch.tensor([[1, 2, 3]]))
    with torch.no_grad():
        a, b, c = (m.eval()(**inputs).logits_per_image for m in (model, other, _clip()))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize('model, message', [
    (lambda: _hf('ViTMAEModel', 'ViTMAEConfig'), r'ViTMAEModel cannot be adapted: embeddings .*open the same files as ViTModel'),
    (lambda: _hf('BeitForImageClassification', 'BeitConfig'), r'BeitModel cannot be adapted: beit\.layers\.0\.attention .*mmpetl\.BEiTViT'),
    (lambda: transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(
        **{**{k: v for k, v in HF.items() if k != 'image_size'}, 'num_patches': 16})), 'NaFlex.*SiglipVisionModel'),
    (lambda: timm.create_model('naflexvit_base_patch16_gap', depth=1), r'naflexvit\.NaFlexVit cannot be adapted: embeds .*vit_\*'),
    (lambda: timm.create_model('levit_128s'), r'timm\.models\.levit\.LevitDistilled cannot be adapted\. Take .* of timm: Eva, [^;]*$'),
])
def test_what_is_undefined_says_what_to_take(model, message):
    made = model()
    with pytest.raises(ValueError, match=message) as error:
        mmpetl.attach(made, [dict(type='LoRA')])
    assert '\n' not in str(error.value)


def test_files_of_an_mae_open_as_a_vit(tmp_path):
    _hf('ViTMAEModel', 'ViTMAEConfig').save_pretrained(tmp_path)
    opened, report = transformers.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not report['missing_keys'] and not report['unexpected_keys']
    mmpetl.attach(opened, [dict(type='LoRA', rank=2)])


@pytest.mark.parametrize('channels', [1, 4])
def test_pictures_of_other_channels(channels):
    """Grey and multispectral pictures: the probe batch of a merge has as many channels as the patch embedding."""
    timm = pytest.importorskip('timm')
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=8, in_chans=channels, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    mmpetl.attach(model, [dict(type='LoRA', rank=2)])
    with torch.no_grad():
        for p in model.petl.parameters():
            p.normal_()
    x = torch.randn(2, channels, 16, 16)
    before = model.eval()(x)
    mmpetl.merge(model, verify=True)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
