# SPDX-License-Identifier: Apache-2.0
"""The textbook forms that the benchmark compares with give our outputs and gradients."""

import sys
from pathlib import Path

import pytest
import torch
from cases import BACKBONE, METHODS, features, perturb

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))
from benchmark_plain import plain  # noqa: E402

#: Methods of the table on the backbones that have no textbook form; a few have none anywhere.
ON_NORMS_AND_INPUTS = ('OFT', 'BOFT', 'RepAdapter', 'ARC', 'RLRR', 'SSF', 'LoRA + SSF')
WITHOUT = {'swin': ('Adapter', 'Prefix', 'VPT', 'E2VPT', 'APT', 'Convpass', 'VPT + LoRA', 'Mona', 'SCT', 'Res-Tuning', *ON_NORMS_AND_INPUTS),
           'video_swin': ('Adapter', 'Prefix', 'APT', 'SCT', 'Res-Tuning', *ON_NORMS_AND_INPUTS)}
NOWHERE = ('Prefix-qk', 'IA3', 'DoRA', 'VeRA', 'Adapter+', 'ST-Adapter', 'DoRA + LoRA')
PAIRS = [(case, BACKBONE[name]) for case in METHODS for name in case.on
         if name in BACKBONE and case.name not in (*WITHOUT.get(name, ()), *NOWHERE)]
RULES = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


def results(model, x):
    """Feature and gradients by name of the parameter, for random weights of the feature."""
    y = features(model(x)).flatten(1)
    weights = torch.linspace(-1, 1, y.shape[1], dtype=y.dtype)
    model.zero_grad()
    (y * weights).sum().backward()
    return y.detach(), {
        n.removeprefix('model.'): p.grad.clone()
        for n, p in model.named_parameters() if p.grad is not None
    }


def compare(model, x, tolerance):
    model.eval()
    ours, textbook = results(model, x), results(plain(model), x)
    torch.testing.assert_close(ours[0], textbook[0], atol=tolerance, rtol=tolerance)
    assert ours[1].keys() == textbook[1].keys() and ours[1]
    for name, gradient in ours[1].items():
        largest = gradient.abs().max().item() + 1
        assert (gradient - textbook[1][name]).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize('case,backbone', PAIRS, ids=[f'{c.name}-{b.name}' for c, b in PAIRS])
@pytest.mark.parametrize('dtype,tolerance', RULES, ids=['fp32', 'fp64'])
def test_plain_form_equals_ours(case, backbone, dtype, tolerance):
    torch.manual_seed(0)
    model = backbone.build(case.petl).to(dtype)
    perturb(model, 0.05)
    compare(model, backbone.inputs(2, dtype=dtype), tolerance)


@pytest.mark.parametrize('name', BACKBONE)
def test_full_fine_tuning(name):
    torch.manual_seed(0)
    model = BACKBONE[name].build(tune=['*']).double()
    perturb(model, 0.05)
    compare(model, BACKBONE[name].inputs(2, dtype=torch.float64), 1e-10)


def test_options_that_the_table_does_not_show():
    options = [
        [dict(type='FacT', kind='tt', rank=3, scale=0.3,
              drop_rate=0.)], [dict(type='APT', num_tokens=3, reparam='exp')],
        [dict(type='E2VPT', num_tokens=3, num_kv_tokens=2, segments=4, segment_layout='contiguous', share_kv=False)],
        [dict(type='VPT', num_tokens=3, deep=False)], [dict(type='Prefix', num_tokens=3, mid_dims=None)],
        [dict(type='KAdaptation', phm_dim=4, rank=2, rule_rank=2, post_scale_q=True, tie_factors=True)]
    ]
    for petl in options:
        torch.manual_seed(0)
        model = BACKBONE['vit'].build(petl).double()
        perturb(model, 0.05)
        compare(model, BACKBONE['vit'].inputs(2, dtype=torch.float64), 1e-10)


def test_what_has_no_plain_form():
    assert plain(BACKBONE['swin'].build([dict(type='SSF')])) is None
    with pytest.raises(ValueError, match='class token'):
        plain(BACKBONE['vit'].build(out_type='avg_featmap', final_norm=False))
