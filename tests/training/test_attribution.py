# SPDX-License-Identifier: Apache-2.0
"""Attributions add up to the score, a prompt that nobody sees adds nothing, and attention is what the base computes."""

import pytest
import torch
from cases import ROW, features, perturb
from torch import nn

from mmpetl.training.attribution import attribution, class_attention


class Classifier(nn.Module):
    """Mean of the feature map, a linear head."""

    def __init__(self, on, petl):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = ROW[on].build(petl), nn.Linear(32, 3)
        perturb(self.backbone, 0.2)

    def forward(self, inputs, mode='tensor'):
        y = features(self.backbone(inputs))
        return self.head(y if y.dim() == 2 else y.flatten(2).mean(-1))


E2VPT = dict(type='E2VPT', num_tokens=3, num_kv_tokens=2, segments=4)
CASES = [('vit', [dict(type='VPT', num_tokens=3)], 3, 0), ('vit', [dict(type='VPT', num_tokens=3, deep=False)], 3, 0),
         ('vit', [E2VPT], 3, 2), ('vit', [dict(E2VPT, attention_prompts='qk')], 3, 0),
         ('vit', [dict(E2VPT, attention_prompts='qkv')], 3, 2), ('vit', [dict(E2VPT, attention_prompts='qv')], 3, 2), ('clip', [dict(type='LoRA', rank=2)], 0, 0),
         ('swin', [E2VPT], 3, 2), ('videomae', [dict(type='APT', num_tokens=3)], 0, 3),
         ('video_swin', [dict(type='Prefix', num_tokens=3, mid_dims=4)], 0, 3),
         ('hf_vit', [dict(type='VPT', num_tokens=3), dict(type='LoRA', rank=2)], 3, 0)]


@pytest.mark.parametrize('on, petl, prompts, keys', CASES, ids=[f'{c[0]}-{c[1][0]["type"]}-{n}' for n, c in enumerate(CASES)])
def test_attributions_add_up_to_what_the_score_gains(on, petl, prompts, keys):
    model = Classifier(on, petl)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trains = [p.requires_grad for p in model.parameters()]
    x = ROW[on].inputs()[:1]
    found = attribution(model, dict(inputs=x), 1, steps=24)
    assert abs(found.total - found.gain) <= .02 * max(1, abs(found.gain)) and abs(found.gain) > .01
    assert tuple(found.grid.shape) == tuple(model.backbone.petl.taps[0].grid)
    assert {len(t) for t in found.prompts.values()} == ({prompts} if prompts else set())
    assert {len(t) for t in found.kv.values()} == ({keys} if keys else set())
    assert [p.requires_grad for p in model.parameters()] == trains and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():  # nothing of it is left behind
        model.eval()
        first = model(x)
        assert torch.equal(first, model(x))
        assert found.label == 1 and attribution(model, dict(inputs=x), steps=1).label == int(first.argmax())


def test_only_the_patch_that_differs_adds_and_a_mute_prompt_does_not():
    """The feature is the mean of tokens that no attention mixes: a patch like the empty picture's adds nothing."""
    model = Classifier('videomae', [dict(type='VPT', num_tokens=2)])
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
    x = torch.zeros(1, 3, 4, 32, 32)
    x[..., 8:16, 16:24] = 1
    found = attribution(model, dict(inputs=x), 0, steps=32)
    assert found.grid.shape == (2, 4, 4)
    outside = found.grid.clone()
    outside[:, 1, 2] = 0
    assert outside.abs().max() < 1e-7 and found.grid[:, 1, 2].abs().min() > 1e-4
    assert all(t.abs().max() < 1e-7 for t in found.prompts.values())


@pytest.mark.parametrize('petl, share', [([], False), ([dict(type='VPT', num_tokens=3)], True), ([E2VPT], True)])
def test_attention_of_the_class_token_is_the_softmax_of_its_logits(petl, share):
    model, x = Classifier('vit', petl), ROW['vit'].inputs()[:2]
    found = class_attention(model, dict(inputs=x))
    assert len(found) == 3
    for one in found:
        assert one.grid.shape == (4, 4) and float(one.grid.sum()) + one.leading + one.prompts == pytest.approx(1, abs=1e-5)
        assert (one.prompts > .01) is share
    block, seen = model.backbone.layers[0], []
    block.ln1.register_forward_hook(lambda m, args, out: seen.append(out))
    model.eval()
    model(x)
    q, k, _ = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in block.attn.qkv(seen[0]).chunk(3, -1))
    keys = [k]
    if share:
        own = block.attn.qkv(block.ln1(model.backbone.petl[petl[0]['type'].lower()].prompts['0'][None])).chunk(3, -1)[1]
        keys.insert(0, own.unflatten(-1, (4, 8)).transpose(1, 2).expand(2, -1, -1, -1))
    if petl == [E2VPT]:
        keys.insert(1, model.backbone.petl.e2vpt.kv_prompts['0'][:1].expand(2, -1, -1, -1))
    weights = (q[:, :, :1] @ torch.cat(keys, 2).transpose(-1, -2) * 8**-.5).softmax(-1).mean((0, 1, 2))
    torch.testing.assert_close(found[0].grid.flatten(), weights[-16:], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize('on, petl, words', [('vit', [dict(type='VQT', num_tokens=2)], 'a side method reads'),
                                             ('swin', [], 'no class token'), ('videomae', [], 'no class token')])
def test_what_cannot_be_explained_is_said(on, petl, words):
    model = Classifier(on, petl)
    with pytest.raises(ValueError, match=words):
        (attribution if petl else class_attention)(model, dict(inputs=ROW[on].inputs()[:1]))
    model.head = None
    if not petl:
        with pytest.raises(ValueError, match='no classification head'):
            attribution(model, dict(inputs=ROW[on].inputs()[:1]))
