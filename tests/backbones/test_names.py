# SPDX-License-Identifier: Apache-2.0
"""What the pages say of names of timm and classes of transformers is tried by name."""

import re
import warnings
from pathlib import Path

import pytest
import torch

import mmpetl

timm = pytest.importorskip('timm')
transformers = pytest.importorskip('transformers')
warnings.filterwarnings('ignore')

ROOT = Path(__file__).resolve().parents[2]
DOC, README = ((ROOT / name).read_text(encoding='utf-8') for name in ('docs/other_libraries.md', 'README.md'))
LORA = [dict(type='LoRA', rank=4)]
HF = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8)
SWIN = dict(image_size=32, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4)
_MASTER = dict(crop_size=32, frames_per_clip=4, pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2)
#: Classes that hold one of the known ones.
HOLDERS = ('SwinForImageClassification', 'Swinv2ForMaskedImageModeling', 'ViTForImageClassification', 'Dinov2ForImageClassification', 'CLIPVisionModelWithProjection', 'CLIPModel',
           'SiglipModel', 'VideoMAEForVideoClassification', 'VivitForVideoClassification',
           'TimesformerForVideoClassification', 'VJEPA2ForVideoClassification', 'DPTForDepthEstimation')


def _listed(mark, pattern):
    part = DOC[DOC.index(f'<!-- {mark}'):]
    return re.findall(pattern, part[:part.index('<!-- end')])


NAMES = _listed('names of timm', r'`([\w.]+)`')
CLASSES = _listed('classes of transformers', r'`(\w+(?:Model|Backbone))`')


def _small(name):
    """A model of a name with few blocks, all else as it is; without memory."""
    depth = dict(depths=(1, 1, 1, 1)) if name.startswith('swin') else dict(stages=(1, 1, 1, 1)) if name.startswith('hiera') else dict(depth=1)
    with torch.device('meta'):
        return timm.create_model(name, num_classes=0, **depth)


def test_lists_are_long_enough():
    assert len(NAMES) == 16 and len(CLASSES) + len(HOLDERS) >= 12 and len(set(NAMES)) == 16


@pytest.mark.parametrize('name', NAMES)
def test_name_of_timm(name):
    assert name in timm.list_models(pretrained=True) or name in timm.list_models()
    model = _small(name)
    with torch.device('meta'):
        mmpetl.attach(model, LORA)
    assert mmpetl.summary(model).without_head > 0
    # On the meta device shapes alone are computed.
    size = model.pretrained_cfg['input_size'][1:] if name.startswith('hiera') else model.patch_embed.img_size
    assert model(torch.empty(2, 3, *size, device='meta')).shape[0] == 2


def _hf(name):
    stem = re.split(r'Model|Backbone|For', name)[0]
    config = getattr(transformers, f'{stem}Config')
    if name in ('CLIPModel', 'SiglipModel'):
        text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=64)
        return getattr(transformers, name)(config(vision_config=HF, text_config=text))
    if stem == 'DPT':
        small = {k: v for k, v in HF.items() if k != 'intermediate_size'}
        backbone = transformers.Dinov2Config(**small, out_features=['stage1', 'stage2'], reshape_hidden_states=False)
        return transformers.DPTForDepthEstimation(config(
            backbone_config=backbone, neck_hidden_sizes=[8, 8], fusion_hidden_size=8))
    if stem.startswith('Swin'):
        return getattr(transformers, name)(config(**SWIN))
    return getattr(transformers, name)(config(**HF, **(_MASTER if stem == 'VJEPA2' else {})))


@pytest.mark.parametrize('name', [*CLASSES, *HOLDERS])
def test_class_of_transformers(name):
    with torch.device('meta'):
        model = mmpetl.attach(_hf(name), LORA)
    assert mmpetl.summary(model).without_head > 0


@pytest.mark.slow
def test_all_names_of_timm():
    """The numbers of both pages, for the version that they name; whatever is refused is refused in one line by name."""
    stated = re.search(r'Of the (\d+) model names that timm ([\d.]+)\nlists in these files.*?(\d+) attach and (\d+) are refused', DOC, re.S)
    modules = ('vision_transformer', 'eva', 'deit', 'swin_transformer', 'swin_transformer_v2', 'hiera',
               'vision_transformer_hybrid')
    names = [name for module in modules for name in timm.list_models(module=module)]
    refused = []
    for name in names:
        with torch.device('meta'):
            model = timm.create_model(name, num_classes=0)
        try:
            with torch.device('meta'):
                mmpetl.attach(model, LORA)
        except ValueError as error:
            assert re.search(r'blocks\.\d+|patch_embed', str(error)) and '\n' not in str(error), name
            refused.append(name)
    found = len(names), len(names) - len(refused), len(refused)
    if timm.__version__ == stated[2]:
        assert found == (int(stated[1]), int(stated[3]), int(stated[4]))
        assert f'timm ({stated[3]} of its {stated[1]} ViTs, Swins, Hieras)' in README
    assert len(refused) / len(names) < 0.15


def test_both_pages_say_the_same_numbers():
    stated = re.search(r'Of the (\d+) model names.*?(\d+) attach and (\d+) are refused', DOC, re.S)
    total, attach, refused = (int(n) for n in stated.groups())
    assert total == attach + refused and f'timm ({attach} of its {total} ViTs, Swins, Hieras)' in README


MVIT = dict(embed_dims=16, num_layers=2, num_heads=1, downscale_indices=[1])


def _mmpretrain_mvit():
    from mmpretrain.models import MViT
    return MViT(arch=MVIT, img_size=32, out_scales=(1, ), dim_mul_in_attention=False)


def _mmaction_mvit():
    from mmaction.models.backbones.mvit import MViT
    return MViT(arch=MVIT, spatial_size=32, temporal_size=4, out_scales=(1, ), dim_mul_in_attention=False)


def _timesformer():
    import mmaction.models  # noqa: F401
    from mmaction.models.backbones.timesformer import TimeSformer
    from mmengine.registry import DefaultScope
    with DefaultScope.overwrite_default_scope('mmaction'):
        return TimeSformer(num_frames=4, img_size=32, patch_size=8, embed_dims=32, num_heads=2, num_transformer_layers=1)


@pytest.mark.parametrize('build, message', [
    (_mmpretrain_mvit, r'^blocks\.0\.mlp \(MLP\) cannot be adapted: it widens the stream \(dim_mul_in_attention=False\)'),
    (_mmaction_mvit, r'^blocks\.0\.mlp \(MLP\) cannot be adapted: it widens the stream \(dim_mul_in_attention=False\)'),
    (_timesformer, r'TimeSformer cannot be adapted: transformer_layers .*TimesformerModel of transformers'),
    (lambda: timm.create_model('mvitv2_tiny'), r'MultiScaleVit cannot be adapted: stages\.0\.blocks\.0\.attn'),
])
def test_undefined_classes_are_refused_by_path(build, message):
    with torch.device('meta') if 'timm' in getattr(build, '__code__', build).co_names else torch.device('cpu'):
        model = build()
    with pytest.raises(ValueError, match=message) as error:
        mmpetl.attach(model, LORA)
    assert '\n' not in str(error.value)
