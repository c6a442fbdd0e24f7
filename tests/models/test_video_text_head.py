# SPDX-License-Identifier: Apache-2.0
"""The head for videos whose classes are texts, alone and over the frames of clips."""

import numpy as np
import pytest
import torch
from cases import ROW, features, perturb
from mmaction.structures import ActionDataSample
from mmengine.registry import init_default_scope

from mmpetl.models import TextFeatures, save_text_features
from mmpetl.registry import MODELS

CLIPS = ROW['clip_frames']


@pytest.fixture
def texts(tmp_path):
    """Three classes in a space of 6."""
    rows = torch.nn.functional.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(5)), dim=-1)
    save_text_features(str(tmp_path / 't.npz'), TextFeatures(rows, ('run', 'jump', 'sit')))
    return str(tmp_path / 't.npz')


def head_of(texts, **options):
    init_default_scope('mmaction')
    head = MODELS.build(dict(type='mmpetl.VideoTextHead', num_classes=3, text_features=texts,
                             **{'in_channels': 32, 'projection': dict(out_channels=6), **options}))
    head.init_weights()
    return head


def cosines(embeddings, texts):
    """(N, E), (C, E) -> 100 times their cosines, in numpy."""
    norms = [np.sqrt((m**2).sum(1)) for m in (embeddings, texts)]
    return 100 * embeddings @ texts.T / norms[0][:, None] / norms[1]


def test_zero_shot_over_clips_is_clip_over_single_frames(texts):
    """Every frame through upstream's own image model, its class token projected, the mean's cosine with the texts."""
    model = CLIPS.build()
    perturb(model, 0.1)
    plain = ROW['clip'].build_upstream()
    plain.load_state_dict(model.state_dict())
    model, plain, head = model.double(), plain.double(), head_of(texts).double()
    model.eval(), plain.eval()  # upstream's return nothing
    clips = CLIPS.inputs(dtype=torch.float64)
    with torch.no_grad():
        frames = np.stack([features(plain(clips[:, :, t])).numpy() for t in range(4)], 1)  # (B, T, C)
        got = head(model(clips)).numpy()
    embeddings = (frames @ head.projection.proj.detach().numpy()).mean(1)
    assert np.abs(got - cosines(embeddings, np.load(texts)['weight'].astype(np.float64))).max() <= 1e-10
    assert not [n for n, p in head.named_parameters() if p.requires_grad]
    assert set(head.state_dict()) == {'projection.proj'}, 'the texts belong to the configuration'


@pytest.mark.parametrize('average_clips', ['prob', 'score'])
def test_views_are_averaged_as_scores_or_as_features(texts, average_clips):
    x = torch.randn(2 * 3, 32, generator=torch.Generator().manual_seed(1))
    rows = np.load(texts)['weight'].astype(np.float64)

    def scores(**options):
        torch.manual_seed(0)
        head = head_of(texts, average_clips=average_clips, **options)
        samples = head.predict((x, ), [ActionDataSample() for _ in range(2)])
        return head, samples, np.stack([s.pred_score.numpy() for s in samples])

    def softmax(z):
        return np.exp(z - z.max(-1, keepdims=True)) / np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)

    head, samples, got = scores(keep_views=True)
    embeddings = x.double().numpy() @ head.projection.proj.detach().double().numpy()
    views = cosines(embeddings, rows).reshape(2, 3, 3)
    assert np.abs(got - (softmax(views) if average_clips == 'prob' else views).mean(1)).max() <= 1e-4
    assert np.abs(samples[1].view_scores.numpy() - views[1]).max() <= 1e-4
    _, samples, got = scores(pool_views=True)
    unit = embeddings / np.sqrt((embeddings**2).sum(1, keepdims=True))
    pooled = cosines(unit.reshape(2, 3, 6).mean(1), rows)
    assert np.abs(got - (softmax(pooled) if average_clips == 'prob' else pooled)).max() <= 1e-4
    assert [int(s.pred_label) for s in samples] == pooled.argmax(1).tolist()


def test_adapters_train_under_texts_that_stay(texts):
    model = CLIPS.build([dict(type='AIM', mid_dims=4)])
    perturb(model, 0.1)
    head = head_of(texts)
    before = head.text.clone()
    samples = [ActionDataSample().set_gt_label(i) for i in (0, 2)]
    head.loss(model(CLIPS.inputs()), samples)['loss_cls'].backward()
    assert all(p.grad is not None for p in model.petl.parameters()) and head.projection.proj.grad is None
    assert torch.equal(head.text, before) and not head.text.requires_grad


def test_texts_that_train_begin_at_the_file(texts):
    head = head_of(texts, train_text=True, scale=10., projection=None, in_channels=6)
    with torch.no_grad():
        head.text.normal_()
    head.init_weights()
    assert np.array_equal(head.text.detach().numpy(), np.load(texts)['weight']) and 'text' in head.state_dict()
    x = torch.randn(2, 6)
    head((x, )).square().sum().backward()
    # A cosine does not know the length of a row.
    assert (head.text.grad * head.text).sum(1).abs().max() < 1e-4 and head.text.grad.abs().max() > 0.1


def test_a_temperature_that_trains(texts):
    """Its gradient is that of softmax(s z) by log s: s (sum_c p_c z_c - z_label), and it begins at the scale."""
    head, fixed = head_of(texts, train_scale=True, scale=20.), head_of(texts, scale=20.)
    fixed.load_state_dict({k: v for k, v in head.state_dict().items() if k != 'log_scale'})
    x, labels = torch.randn(4, 32, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1, 2, 0])
    logits = head((x, ))
    torch.testing.assert_close(logits, fixed((x, )))
    torch.nn.functional.cross_entropy(logits, labels, reduction='sum').backward()
    z = logits.detach().double()
    wanted = ((z.softmax(1) * z).sum(1) - z[torch.arange(4), labels]).sum()
    assert abs(head.log_scale.grad - wanted) <= 1e-4 * abs(wanted) and 'log_scale' in head.state_dict()
    with torch.no_grad():
        head.log_scale.add_(1)
    torch.testing.assert_close(head((x, )), fixed((x, )) * np.e)
    head.init_weights()
    torch.testing.assert_close(head.log_scale.exp().item(), 20.)


def test_half_precision_costs_no_tenths(texts):
    head, x = head_of(texts), torch.randn(8, 32)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        half = head((x.bfloat16(), ))
    assert half.dtype is torch.float32 and (half - head((x.bfloat16().float(), ))).abs().max() <= 1e-4


def test_refusals(texts):
    with pytest.raises(ValueError, match='features of width 6, but the head takes 32'):
        head_of(texts, projection=None)
    with pytest.raises(ValueError, match='with pool_views=True the views of a video have no scores of their own'):
        head_of(texts, pool_views=True, keep_views=True)
    with pytest.raises(ValueError, match='scale=0 cannot train: it must be above 0'):
        head_of(texts, train_scale=True, scale=0.)
    with pytest.raises(FileNotFoundError, match='makes it'):
        head_of('nowhere/hmdb51.npz')
