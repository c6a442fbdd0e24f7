# SPDX-License-Identifier: Apache-2.0
"""Scores of prompts: the published ones on golden arrays, the sound ones against finite differences and removal."""

import copy
import gc

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from golden import e2vpt_names, golden_tensors
from mmengine.model import MMDistributedDataParallel
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import nn

from mmpetl.pruning.scores import PromptScorer, PromptScores, find_prunable, mask_levels, set_gates


def classifier(depth=3, swin=False, petl=None, **kwargs):
    torch.manual_seed(0)
    petl = petl or [dict(type='E2VPT', num_tokens=10, num_kv_tokens=3, segments=4 if swin else 16, **kwargs)]
    if swin:
        backbone = dict(
            type='mmpetl.SwinTransformer',
            arch=dict(embed_dims=8, depths=[2, 2], num_heads=[1, 2]),
            img_size=16,
            patch_size=2,
            window_size=4,
            out_indices=(1, ),
            petl=petl)
        neck, width = dict(type='mmpretrain.GlobalAveragePooling'), 16
    else:
        arch = dict(embed_dims=32, num_layers=depth, num_heads=4, feedforward_channels=64)
        backbone = dict(
            type='mmpetl.VisionTransformer',
            arch=arch,
            img_size=16,
            patch_size=8,
            norm_cfg=dict(type='LN', eps=1e-6),
            petl=petl)
        neck, width = None, 32
    model = ImageClassifier(
        backbone=backbone, neck=neck, head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=width))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if 'petl' not in name:
                p.add_(0.3 * torch.randn_like(p))
    return model


def reference_classifier(z, **kwargs):
    model, sd = classifier(**kwargs), {k.removeprefix('sd.enc.transformer.'): v for k, v in z.items()}
    model.backbone.load_state_dict(e2vpt_names(sd, 3))
    model.head.fc.load_state_dict({k: z[f'sd.head.last_layer.{k}'] for k in ('weight', 'bias')})
    return model


class Double(nn.Module):
    """A data preprocessor that keeps double precision."""

    def forward(self, data, training):
        assert training is False
        return dict(inputs=data['inputs'].double(), data_samples=data['data_samples'])


def packed(images, labels):
    return dict(inputs=images, data_samples=[DataSample().set_gt_label(int(label)) for label in labels])


def golden_batches(z):
    return [packed(z[f'batch{i}.image'], z[f'batch{i}.label']) for i in range(3)]


def batches(count=12, size=4):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % 5
    return [packed(x[i:i + size], y[i:i + size]) for i in range(0, count, size)]


@pytest.mark.parametrize('variant', ['paper', 'released'])
def test_golden_published_scores(variant):
    """The published signed score, whether masks are buffers or trained parameters, and the masks that follow from
    it."""
    z = golden_tensors('e2vpt_importance')
    scores = PromptScorer(variant='released').score(reference_classifier(z, variant=variant), golden_batches(z))
    torch.testing.assert_close(scores.tokens.float(), z['token_importance'], atol=1e-7, rtol=0)
    torch.testing.assert_close(scores.segments.float(), z['piece_importance'], atol=1e-6, rtol=0)
    model = reference_classifier(z, variant=variant).double()
    model.data_preprocessor = Double()
    exact = PromptScorer(variant='released').score(model, golden_batches(z))
    torch.testing.assert_close(exact.tokens, z['token_importance_fp64'], atol=1e-12, rtol=0)
    for name, levels, index in (('token', z['token_increments'].cumsum(0), 0), ('piece',
                                                                                z['piece_increments'].cumsum(0), 1)):
        for level, mask in zip(levels.tolist(), z[f'{name}_masks']):
            chosen = exact.choose(*((level, 0) if index == 0 else (0, level)))[index]
            assert torch.equal(chosen, mask.bool()), (name, level)


def test_golden_normalised_and_absolute_scores():
    z = golden_tensors('e2vpt_importance')
    model, data = reference_classifier(z), golden_batches(z)
    scores = PromptScorer(variant='released', normalise=True).score(model, data)
    torch.testing.assert_close(scores.segments.float(), z['piece_importance_normalised'], atol=1e-5, rtol=0)
    # In single precision the token score is close to its own noise, so its normalised form agrees to 1e-3 only.
    torch.testing.assert_close(scores.tokens.float(), z['token_importance_normalised'], atol=1e-3, rtol=0)
    model = model.double()
    model.data_preprocessor = Double()
    per_batch = [PromptScorer(target='embedding', reduce='abs_of_mean').score(model, [b]) for b in data]
    torch.testing.assert_close(
        sum(s.tokens for s in per_batch) / 3, z['token_importance_absmean_fp64'], atol=1e-12, rtol=0)
    torch.testing.assert_close(
        sum(s.segments for s in per_batch) / 3, z['piece_importance_absmean_fp64'], atol=1e-12, rtol=0)


def test_levels_of_the_published_search():
    table = {
        1: [0],
        5: [0, 1, 2, 3, 4],
        10: list(range(1, 10)),
        20: list(range(2, 19, 2)),
        32: [3, 6, 9, 12, 16, 19, 22, 25, 28],
        50: list(range(5, 46, 5)),
        100: list(range(10, 91, 10))
    }
    for total, levels in table.items():
        assert mask_levels(total, 1, zero=False) == levels
        assert mask_levels(total, 1) == sorted({0, *levels})
    assert mask_levels(16, 4, zero=False) == [1, 3, 4, 6, 8, 9, 11, 12]
    z = golden_tensors('e2vpt_importance')
    assert mask_levels(10, 1, zero=False) == z['token_increments'].cumsum(0).unique().tolist()
    assert mask_levels(16, 4, zero=False) == z['piece_increments'].cumsum(0).unique().tolist()


@pytest.mark.parametrize('kwargs, message', [
    (dict(total=4, minimum=5), 'a minimum of 5 of 4'), (dict(total=4, minimum=0), 'a minimum of 0'),
    (dict(total=4, percents=[120]), '0..100')])
def test_levels_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        mask_levels(**kwargs)


@pytest.mark.parametrize('swin, deep', [(False, True), (False, False), (True, True), (True, False)])
def test_scores_are_derivatives_of_gates(swin, deep):
    """Per sample against central differences: gates e^t inside attention, factors on segments of the prompts."""
    model = classifier(swin=swin, deep=deep).double()
    model.data_preprocessor = Double()
    data = batches(3, 1)
    scores = PromptScorer(target='attention').score(model, data)
    backbone, _, method = find_prunable(model)
    step = 1e-4

    def loss(batch, token=None, segment=None):
        tokens, segments = torch.zeros(1, 10).double(), torch.zeros(1, 10, method.segments).double()
        if token is not None:
            tokens[0, token[0]] = token[1]
        if segment is not None:
            segments[0, segment[0], segment[1]] = segment[2]
        backbone.petl.full_prompts = True
        backbone.petl.refresh()
        set_gates(backbone.petl, method, tokens)
        with torch.no_grad(), method.gating(None, segments):
            return model(**model.data_preprocessor(batch, False), mode='loss')['loss'].item()

    model.eval()
    for i in (0, 7):
        mean = np.mean([abs(loss(b, (i, step)) - loss(b, (i, -step))) / (2 * step) for b in data])
        assert scores.tokens[i].item() == pytest.approx(mean, rel=1e-4)
        mean = np.mean([abs(loss(b, None, (i, 3, step)) - loss(b, None, (i, 3, -step))) / (2 * step) for b in data])
        assert scores.segments[i, 3].item() == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize('variant', ['paper', 'released'])
@pytest.mark.parametrize('swin, deep', [(False, True), (False, False), (True, True), (True, False)])
def test_scores_are_losses_of_removal(swin, deep, variant):
    """Against a model that is really pruned; in the released variant, which keeps zeros, against a model without the
    masked token."""
    model = classifier(swin=swin, deep=deep, variant=variant).double()
    model.data_preprocessor = Double()
    data = batches(6, 4)
    scores = PromptScorer().score(model, data)

    def loss(model):
        model.eval()
        with torch.no_grad():
            return sum(
                model(**model.data_preprocessor(b, False), mode='loss')['loss'].item() * len(b['data_samples'])
                for b in data) / 6

    for i in (0, 7):
        smaller = copy.deepcopy(model)
        method, keep = smaller.backbone.petl.e2vpt, torch.arange(10) != i
        method.variant = 'paper'
        method.prune(keep, torch.ones(10, method.segments))
        smaller.backbone.petl.refresh()
        assert scores.tokens[i].item() == pytest.approx(loss(smaller) - loss(model), abs=1e-10)
    assert scores.tokens.std() > 1e-6
    # The last token can be scored too.
    if variant == 'paper':
        model.backbone.petl.e2vpt.prune(torch.arange(10) == 3, torch.ones(10, method.segments))
        model.backbone.petl.refresh()
        last = PromptScorer().score(model, data).tokens
        assert last.isfinite().tolist() == [i == 3 for i in range(10)]


def test_video_recognizer():
    """One clip per video, as mmaction2 packs it; the derivative of one token's gate against central differences."""
    from mmaction.models import Recognizer3D
    from mmaction.structures import ActionDataSample
    torch.manual_seed(0)
    backbone = dict(
        type='mmpetl.VideoMAE',
        img_size=16,
        patch_size=8,
        embed_dims=32,
        depth=2,
        num_heads=4,
        num_frames=4,
        petl=[dict(type='E2VPT', num_tokens=4, num_kv_tokens=2)])
    model = Recognizer3D(
        backbone=backbone,
        cls_head=dict(type='mmaction.TimeSformerHead', num_classes=3, in_channels=32),
        data_preprocessor=dict(
            type='mmaction.ActionDataPreprocessor', mean=[0.] * 3, std=[1.] * 3, format_shape='NCTHW'))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    data = [
        dict(
            inputs=list(torch.randn(3, 1, 3, 4, 16, 16)),
            data_samples=[ActionDataSample().set_gt_label(i) for i in range(3)])
    ]
    scores = PromptScorer(target='attention').score(model, data)
    assert scores.samples == 3 and (scores.tokens > 0).all()
    petl, losses = model.backbone.petl, {}
    model.eval()
    for sign in (1, -1):
        set_gates(petl, petl.e2vpt, torch.tensor([[0., sign * 1e-2, 0., 0.]]))
        packed_data = model.data_preprocessor(data[0], False)
        with torch.no_grad():
            losses[sign] = [
                model(packed_data['inputs'][i:i + 1], packed_data['data_samples'][i:i + 1],
                      mode='loss')['loss_cls'].item() for i in range(3)
            ]
    assert scores.tokens[1].item() == pytest.approx(
        np.mean(np.abs(np.subtract(losses[1], losses[-1]))) / 2e-2, rel=1e-2)


def test_the_published_token_score_hardly_sees_its_tokens():
    """LayerNorm undoes a factor on the whole prompt; the gate inside attention does not suffer from it."""
    model = classifier()
    with torch.no_grad():
        for prompts in model.backbone.petl.e2vpt.prompts.values():
            prompts.mul_(20)
    inside, embedding = (PromptScorer(target=t).score(model, batches()) for t in ('attention', 'embedding'))
    assert embedding.tokens.mean() < 1e-3 * embedding.segments.mean()
    assert inside.tokens.mean() > 100 * embedding.tokens.mean()


@pytest.mark.parametrize('swin', [False, True])
@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(target='attention'),
    dict(target='embedding', reduce='signed_mean'),
    dict(target='attention', reduce='abs_of_mean')
])
def test_scores_do_not_depend_on_the_batch_split(kwargs, swin):
    model = classifier(swin=swin).double()
    model.data_preprocessor = Double()
    whole, *others = (PromptScorer(**kwargs).score(model, batches(12, size)) for size in (12, 5, 1))
    for other in others:
        assert other.samples == 12
        torch.testing.assert_close(other.tokens, whole.tokens, atol=1e-12, rtol=1e-7)
        torch.testing.assert_close(other.segments, whole.segments, atol=1e-12, rtol=1e-7)


def test_nothing_is_touched():
    model = classifier(petl=[dict(type='E2VPT', segments=4, drop_rate=0.5)])
    model.train()
    modes = [m.training for m in model.modules()]
    before = copy.deepcopy(model.state_dict())
    first, second = (PromptScorer().score(model, batches()) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens), 'dropout is off while scoring'
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and modes == [m.training for m in model.modules()]
    assert all(tap.prompt_gate is None and not tap.prompts_in for tap in model.backbone.petl.taps)


def test_scores_of_a_pruned_model():
    """Removed tokens score -inf, so they stay the first to go; the others are as in the smaller model."""
    model = classifier()
    keep = torch.arange(10) % 2 == 0
    model.backbone.petl.e2vpt.prune(keep, torch.ones(10, 16))
    model.backbone.petl.refresh()
    scores = PromptScorer(target='attention').score(model, batches())
    assert torch.equal(scores.tokens > 0, keep) and (scores.segments[1] == float('-inf')).all()
    assert not (scores.choose(6, 0)[0] & ~keep).any()


def test_stacked_prompts_beside_are_not_gated():
    model = classifier(petl=[dict(type='VPT', num_tokens=4, stack=True), dict(type='E2VPT', num_tokens=6, stack=True)])
    scores = PromptScorer(target='attention').score(model, batches())
    assert scores.tokens.shape == (6, ) and (scores.tokens > 0).all()


def test_important_prompts_score_high():
    """A prompt whose value is far from what attention yields without it changes the loss more when its gate moves."""
    model = classifier(depth=1)
    with torch.no_grad():
        keys = model.backbone.layers[0].attn.qkv.weight[32:64]
        keys.zero_()  # all keys get the same weight, so only the values differ
        prompts = model.backbone.petl.e2vpt.prompts['0']
        prompts.copy_(prompts[:1].expand_as(prompts))
        prompts[3] = torch.randn(32)
    scores = PromptScorer(target='attention').score(model, batches())
    others = torch.cat([scores.tokens[:3], scores.tokens[4:]])
    torch.testing.assert_close(others, others[:1].expand_as(others), atol=1e-9, rtol=1e-4)
    assert scores.tokens.argmax() == 3


def test_choices_are_nested():
    generator = torch.Generator().manual_seed(0)
    scores = PromptScores(torch.rand(10, generator=generator), torch.rand(10, 16, generator=generator), 1)
    before = scores.choose(0, 0)
    assert before[0].all() and before[1].all()
    for tokens, segments in zip(range(1, 10), range(1, 10)):
        now = scores.choose(tokens, segments)
        assert (~now[0]).sum() == tokens and ((~now[1]).sum(1) == segments).all()
        assert not any((n & ~b).any() for n, b in zip(now, before))
        before = now


@pytest.mark.parametrize('pair', [(10, 0), (0, 16), (-1, 0), (0, 99)])
def test_choosing_more_than_exists(pair):
    with pytest.raises(ValueError, match=r'cannot prune -?\d+ of \d+ (tokens|segments): choose 0..'):
        PromptScores(torch.rand(10), torch.rand(10, 16), 1).choose(*pair)


def test_refusals():
    with pytest.raises(ValueError, match='prompt scoring: the dataloader gave no sample'):
        PromptScorer(target='attention').score(classifier(), [])
    with pytest.raises(ValueError, match='exactly one .*E2VPT.* which holds LoRA'):
        PromptScorer(target='attention').score(classifier(petl=[dict(type='LoRA')]), batches())
    for kwargs in (dict(target='atention'), dict(reduce='mean'), dict(weighting='epoch'), dict(variant='publish')):
        with pytest.raises(ValueError, match=f'prompt scoring: unknown {next(iter(kwargs))}'):
            PromptScorer(**kwargs)
    model = classifier()
    with torch.no_grad():
        model.head.fc.weight.fill_(float('nan'))
    with pytest.raises(ValueError, match='not finite'):
        PromptScorer(target='attention').score(model, batches())


def score_as_one_of_two(rank, folder):
    """A process of two, which has every other sample."""
    dist.init_process_group('gloo', init_method=f'file://{folder}/group', rank=rank, world_size=2)
    model = MMDistributedDataParallel(classifier())
    scores = PromptScorer(target='attention').score(model, batches(7, 1)[rank::2])
    torch.save([scores.tokens, scores.segments, scores.samples], f'{folder}/{rank}.pth')
    del model  # a DDP model that outlives its group may abort the process at its end
    gc.collect()
    dist.destroy_process_group()


def test_two_processes_score_as_one(tmp_path):
    """Seven samples, four on one process and three on the other."""
    mp.start_processes(score_as_one_of_two, args=(tmp_path, ), nprocs=2, start_method='fork')
    tokens, segments, samples = torch.load(tmp_path / '1.pth')
    alone = PromptScorer(target='attention').score(classifier(), batches(7, 7))
    assert samples == alone.samples == 7
    torch.testing.assert_close(tokens.double(), alone.tokens, atol=1e-8, rtol=1e-5)
    torch.testing.assert_close(segments.double(), alone.segments, atol=1e-8, rtol=1e-5)
