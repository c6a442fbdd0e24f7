# SPDX-License-Identifier: Apache-2.0
"""Heads and necks: golden arrays, closed formulas, mmpretrain's classifier around them."""


import numpy as np
import pytest
import torch
from golden import golden_tensors
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from mmpetl.models import TextFeatures, class_weights, load_text_features, save_text_features


@pytest.fixture(scope='module')
def golden():
    return golden_tensors('kadapt_head')


def text_file(path, weight, names=None):
    save_text_features(str(path), TextFeatures(weight, tuple(names or (f'class {i}' for i in range(len(weight))))))
    return str(path)


# -- golden -----------------------------------------------------------------------------------------------------------

def test_language_head_with_feature_bn_equals_golden(golden, tmp_path):
    weight = class_weights(golden['prompt_features'])
    torch.testing.assert_close(weight, golden['weight'], rtol=0, atol=1e-6)
    head = MODELS.build(dict(type='mmpetl.FeatureHead', num_classes=3, in_channels=16, feature_bn=True,
                             text_features=text_file(tmp_path / 't.npz', weight)))
    head.init_weights()
    head.train()
    torch.testing.assert_close(head((golden['features'], )), golden['logits_train_bn'], rtol=0, atol=2e-6)
    torch.testing.assert_close(head.bn.running_mean, golden['running_mean_after'], rtol=0, atol=1e-6)
    torch.testing.assert_close(head.bn.running_var, golden['running_var_after'], rtol=0, atol=1e-6)
    head.eval()
    torch.testing.assert_close(head((golden['features'], )), golden['logits_eval_bn'], rtol=0, atol=2e-6)
    assert [n for n, _ in head.named_parameters()] == ['fc.weight', 'fc.bias']


def test_zero_shot_head_equals_golden(golden, tmp_path):
    head = MODELS.build(
        dict(type='mmpetl.ZeroShotHead', text_features=text_file(tmp_path / 't.npz', golden['weight']), num_classes=3))
    samples = head.predict((golden['features'], ))
    got = torch.stack([s.pred_score for s in samples])
    torch.testing.assert_close(got, golden['zeroshot_probs'], rtol=1e-4, atol=1e-12)
    assert not list(head.parameters()) and not head.state_dict()


# -- options and initialisers -----------------------------------------------------------------------------------------

def test_without_options_it_is_mmpretrains_linear_head():
    ours = MODELS.build(dict(type='mmpetl.FeatureHead', num_classes=4, in_channels=8))
    theirs = MODELS.build(dict(type='LinearClsHead', num_classes=4, in_channels=8))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 8)
    torch.testing.assert_close(ours((x, )), theirs((x, )), rtol=0, atol=0)
    cosine = MODELS.build(dict(type='mmpetl.FeatureHead', num_classes=4, in_channels=8, normalize=True, scale=100.))
    cosine.load_state_dict(ours.state_dict())
    torch.testing.assert_close(cosine((x, )), 100 * ours.fc(x / x.norm(dim=1, keepdim=True)))


def test_vpt_and_synqt_head_initialisers():
    """VPT: kaiming normal over fan_out, bias -log(99). SynQT: PyTorch's default."""
    vpt = MODELS.build(
        dict(
            type='LinearClsHead',
            num_classes=200,
            in_channels=768,
            init_cfg=dict(
                type='Kaiming',
                layer='Linear',
                mode='fan_out',
                nonlinearity='relu',
                distribution='normal',
                bias=-4.59511985013459)))
    torch.manual_seed(3)
    vpt.init_weights()
    torch.manual_seed(3)
    want = nn.init.kaiming_normal_(torch.empty(200, 768), mode='fan_out')
    torch.testing.assert_close(vpt.fc.weight.data, want, rtol=0, atol=0)
    assert float(vpt.fc.weight.detach().std()) == pytest.approx((2 / 200)**0.5, rel=0.02)
    torch.testing.assert_close(vpt.fc.bias.data, torch.full((200, ), -float(np.log(99))))
    torch.manual_seed(4)
    synqt = MODELS.build(dict(type='LinearClsHead', num_classes=200, in_channels=768, init_cfg=None))
    synqt.init_weights()
    torch.manual_seed(4)
    want = nn.Linear(768, 200)
    torch.testing.assert_close(synqt.fc.weight.data, want.weight.data, rtol=0, atol=0)
    torch.testing.assert_close(synqt.fc.bias.data, want.bias.data, rtol=0, atol=0)


def test_multi_label_loss_and_scores():
    head = MODELS.build(dict(type='mmpetl.FeatureHead', num_classes=3, in_channels=4, multi_label=True,
                             loss=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1 / 3)))
    x = torch.randn(2, 4)
    targets = torch.tensor([[1., 0, 1], [0, 1, 0]])
    samples = [DataSample().set_gt_score(t) for t in targets]
    want = nn.functional.binary_cross_entropy_with_logits(head((x, )), targets)  # the mean over images and classes
    torch.testing.assert_close(head.loss((x, ), samples)['loss'], want)
    predicted = head.predict((x, ), samples)
    torch.testing.assert_close(torch.stack([s.pred_score for s in predicted]), head((x, )).sigmoid())
    assert predicted[0].pred_label.tolist() == (head((x, ))[0] >= 0).nonzero()[:, 0].tolist()
    assert len(head.predict((x, ))) == 2


def test_feature_bn_takes_a_batch_of_one_and_leaves_its_statistics():
    head = MODELS.build(dict(type='mmpetl.FeatureHead', num_classes=3, in_channels=4, feature_bn=True))
    head.train()
    head((torch.randn(8, 4), ))
    mean = head.bn.running_mean.clone()
    x = torch.randn(1, 4)
    got = head((x, ))
    torch.testing.assert_close(head.bn.running_mean, mean, rtol=0, atol=0)
    torch.testing.assert_close(got, head.eval()((x, )))


# -- text-feature files -----------------------------------------------------------------------------------------------

def test_text_feature_file_round_trip_and_checks(tmp_path):
    weight = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    path = str(tmp_path / 'sub/t.npz')
    save_text_features(
        path, TextFeatures(weight, ('cat', 'dog', 'cow'), ('a photo of a {}.', ), 4.5, 'openai/ViT-B-32', 'ab' * 32))
    got = load_text_features(path, 3, 8)
    torch.testing.assert_close(got.weight, weight, rtol=0, atol=0)
    assert (got.class_names, got.templates, got.logit_scale, got.model, got.checkpoint_sha256) == (
        ('cat', 'dog', 'cow'), ('a photo of a {}.', ), 4.5, 'openai/ViT-B-32', 'ab' * 32)
    with pytest.raises(ValueError, match='has 3 classes, but the head has 4'):
        MODELS.build(dict(type='mmpetl.FeatureHead', num_classes=4, in_channels=8, text_features=path))
    with pytest.raises(ValueError, match='width 8, but the head takes 16'):
        MODELS.build(dict(type='mmpetl.FeatureHead', num_classes=3, in_channels=16, text_features=path))
    with pytest.raises(FileNotFoundError, match='text_features.py'):
        MODELS.build(dict(type='mmpetl.ZeroShotHead', text_features=str(tmp_path / 'absent.npz')))
    with pytest.raises(ValueError, match=r"row 1 \('dog'\) has length 2.0000"):
        save_text_features(path, TextFeatures(weight * torch.tensor([[1.], [2.], [1.]]), ('cat', 'dog', 'cow')))
    with pytest.raises(ValueError, match='there are 2 class names'):
        save_text_features(path, TextFeatures(weight, ('cat', 'dog')))
    np.savez(tmp_path / 'other.npz', a=np.zeros(2))
    with pytest.raises(ValueError, match='not a text-feature file'):
        load_text_features(str(tmp_path / 'other.npz'))


# -- the CLIP projection ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, transposed', [('visual.proj', False), ('visual_projection.weight', True),
                                              ('neck.proj', False)])
def test_projection_is_found_under_every_published_name(tmp_path, name, transposed):
    proj = torch.randn(6, 4)
    path = str(tmp_path / 'clip.pth')
    torch.save({name: (proj.t() if transposed else proj).contiguous().half(), 'other': torch.zeros(1)}, path)
    neck = MODELS.build(dict(type='mmpetl.CLIPProjection', in_channels=6, out_channels=4, checkpoint=path))
    neck.init_weights()
    torch.testing.assert_close(neck.proj.data, proj.half().float(), rtol=0, atol=0)
    x = torch.randn(3, 6)
    torch.testing.assert_close(neck((x, ))[-1], x @ neck.proj)
    assert not neck.proj.requires_grad
    assert MODELS.build(dict(type='mmpetl.CLIPProjection', frozen=False)).proj.requires_grad
    wrong = MODELS.build(dict(type='mmpetl.CLIPProjection', in_channels=4, out_channels=6, checkpoint=path))
    with pytest.raises(ValueError, match='set in_channels and out_channels'):
        wrong.init_weights()


def test_projection_is_completed_when_weights_lack_it(tmp_path):
    """A runner that tests loads a checkpoint but never calls init_weights."""
    proj = torch.randn(6, 4)
    path = str(tmp_path / 'clip.pth')
    torch.save({'visual.proj': proj}, path)
    neck = MODELS.build(dict(type='mmpetl.CLIPProjection', in_channels=6, out_channels=4, checkpoint=path))
    neck.load_state_dict({})
    torch.testing.assert_close(neck.proj.data, proj, rtol=0, atol=0)
    other = torch.randn(6, 4)
    neck.load_state_dict({'proj': other})
    torch.testing.assert_close(neck.proj.data, other, rtol=0, atol=0)
    torch.save({'visual.conv1.weight': proj}, path)
    with pytest.raises(ValueError, match='holds no CLIP projection'):
        neck.load_state_dict({})


def test_heads_inside_an_image_classifier(tmp_path):
    """CLIP tower, frozen projection and feature head: loss, gradients, prediction; the state dict holds each tensor
    once."""
    model = MODELS.build(dict(
        type='ImageClassifier',
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
        backbone=dict(type='mmpetl.CLIPVisionTransformer', img_size=32, patch_size=16, petl=[dict(type='LoRA', rank=2)],
                      arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)),
        neck=dict(type='mmpetl.CLIPProjection', in_channels=32, out_channels=16),
        head=dict(type='mmpetl.FeatureHead', num_classes=5, in_channels=16, feature_bn=True)))
    model.init_weights()
    model.train()
    assert model.head.bn.training
    batch = model.data_preprocessor(
        dict(
            inputs=[torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8) for _ in range(4)],
            data_samples=[DataSample().set_gt_label(i) for i in range(4)]), True)
    loss = model.loss(batch['inputs'], batch['data_samples'])['loss']
    loss.backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}
    assert {'head.fc.weight', 'head.fc.bias'} < trained and 'neck.proj' not in trained
    model.eval()
    assert model.predict(batch['inputs'])[0].pred_score.shape == (5, )
    assert 'neck.proj' in model.state_dict() and 'head.bn.running_mean' in model.state_dict()
