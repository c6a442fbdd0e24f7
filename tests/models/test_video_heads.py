# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from mmaction.structures import ActionDataSample
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmpetl  # noqa: F401
from mmpetl.models.video_heads import VideoMAEHead, VideoSwinHead, temporal_weights


def build(kind, **kwargs):
    init_default_scope('mmaction')
    return MODELS.build(dict(type=f'mmpetl.{kind}', **kwargs))


def samples(n):
    return [ActionDataSample().set_gt_label(i) for i in range(n)]


def test_registered_types_are_the_classes():
    assert type(build('VideoSwinHead', num_classes=5, in_channels=8)) is VideoSwinHead
    assert type(build('VideoMAEHead', num_classes=5, in_channels=8)) is VideoMAEHead


@pytest.mark.parametrize('frames', [2, 4, 8])
def test_video_swin_head_equals_pooled_pairs_and_a_convolution(frames):
    """The published form: average pool (2, H, W) at stride 1, a 1 x 1 x 1 convolution, mean over what is left."""
    head = VideoSwinHead(7, 16).double()
    conv = nn.Conv3d(16, 7, 1).double()
    with torch.no_grad():
        conv.weight.copy_(head.fc_cls.weight.view(7, 16, 1, 1, 1))
        conv.bias.copy_(head.fc_cls.bias)
    x = torch.randn(3, 16, frames, 5, 6, dtype=torch.double)
    expected = conv(F.avg_pool3d(x, (2, 5, 6), stride=1)).flatten(2).mean(-1)
    torch.testing.assert_close(head(x), expected)
    head.temporal_pool = 'mean'
    assert (head(x) - expected).abs().max() > 1e-4 or frames == 2, 'the uniform mean is another head'


def test_temporal_weights():
    torch.testing.assert_close(temporal_weights(4, 'pair'), torch.tensor([1., 2., 2., 1.]) / 6)
    torch.testing.assert_close(temporal_weights(4, 'mean'), torch.full((4, ), .25))
    assert temporal_weights(1, 'pair').tolist() == [1.]
    assert temporal_weights(2, 'pair').tolist() == [.5, .5]


@pytest.mark.parametrize('classes, count', [(51, 52275), (174, 178350), (400, 410000)])
def test_published_head_sizes(classes, count):
    assert sum(p.numel() for p in VideoSwinHead(classes, 1024).parameters()) == count


def test_initial_weights():
    torch.manual_seed(0)
    swin = VideoSwinHead(51, 1024)
    nn.init.zeros_(swin.fc_cls.weight)
    swin.init_weights()
    bound = 1024**-.5  # torch's default, uniform within one over the root of the fan-in
    assert bound * .99 < swin.fc_cls.weight.abs().max() <= bound and swin.fc_cls.bias.abs().max() <= bound
    mae = VideoMAEHead(101, 768)
    mae.init_weights()
    assert float(mae.fc_cls.weight.std()) == pytest.approx(2e-5, rel=.05) and mae.fc_cls.weight.abs().max() < 1.2e-4
    assert mae.fc_cls.bias.abs().max() == 0


@pytest.mark.parametrize('kind, feature, average', [('VideoSwinHead', (16, 4, 3, 3), 'score'),
                                                    ('VideoMAEHead', (16, ), 'prob')])
def test_views_are_averaged_as_published_and_kept(kind, feature, average):
    head = build(kind, num_classes=5, in_channels=16, average_clips=average, keep_views=True, init_std=1.)
    head.init_weights()
    feats = torch.randn(2 * 6, *feature)
    first, second = head.predict(feats, samples(2))
    logits = head(feats).view(2, 6, 5)
    torch.testing.assert_close(first.view_scores, logits[0])
    expected = logits.mean(1) if average == 'score' else logits.softmax(-1).mean(1)
    torch.testing.assert_close(torch.stack([first.pred_score, second.pred_score]), expected)
    plain = build(kind, num_classes=5, in_channels=16, average_clips=average)
    assert 'view_scores' not in plain.predict(feats, samples(2))[0]


def test_loss_and_label_smoothing():
    head = build('VideoMAEHead', num_classes=5, in_channels=8, label_smooth_eps=0.1, init_std=1., init_scale=1.)
    head.init_weights()
    feats = torch.randn(4, 8)
    loss = head.loss(feats, samples(4))['loss_cls']
    torch.testing.assert_close(loss, F.cross_entropy(head(feats), torch.arange(4), label_smoothing=0.1))


def test_unknown_pool_is_refused():
    with pytest.raises(ValueError, match="unknown temporal_pool 'pairs'; did you mean 'pair'"):
        VideoSwinHead(5, 8, temporal_pool='pairs')
