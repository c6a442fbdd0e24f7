# SPDX-License-Identifier: Apache-2.0
"""AdaLoRA against its formulas, in plain NumPy in double precision, and through a run; equality with peft:
test_against_peft.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy_chance
from cases import BACKBONE, features, perturb

import mmpetl
from mmpetl.training.run import build_runner
from mmpetl.weights import adapter_file


def build(**options):
    torch.manual_seed(0)
    model = BACKBONE['vit'].build([dict(type='AdaLoRA', **options)]).double()
    model.train(False)  # which returns nothing
    return model, model.petl['adalora']


def array(tensor):
    return tensor.detach().numpy()


def test_formula_and_start():
    model, method = build(rank=3, ops='q,fc1', alpha=6)
    for triplets in method.triplets().values():
        assert not triplets.values.any() and 0.01 < triplets.left.std() < 0.03 and 0.01 < triplets.right.std() < 0.03
    perturb(method, 0.5)
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    penalty = squares = 0.
    for name, t in method.triplets().items():
        i, op = name.split('.')
        update = 2 * array(t.left) @ np.diag(array(t.values)) @ array(t.right)
        y = torch.randn(2, 5, len(t.left), dtype=torch.float64)
        got = array(method.on_linear(int(i), op, x, y))
        assert np.abs(got - array(y) - array(x) @ update.T).max() <= 1e-12
        assert np.abs(array(method.delta(int(i), op)) - update).max() <= 1e-12
        for gram in (array(t.left).T @ array(t.left), array(t.right) @ array(t.right).T):
            penalty += np.sqrt(((gram - np.eye(3))**2).sum()) / 12
            squares += ((gram - np.eye(3))**2).sum()
    assert method.orthogonality('released').item() == pytest.approx(penalty, rel=1e-12)
    assert method.orthogonality().item() == pytest.approx(squares, rel=1e-12)


def test_the_budget_is_that_of_the_paper():
    allocator = build(rank=6, ops='qv')[1].allocator(2, 100, 10, 30, 5)
    assert [allocator.budget(s) for s in (0, 10, 70, 99)] == [36, 36, 12, 12]
    assert allocator.budget(40) == 12 + int(24 * 0.5**3)


@pytest.mark.parametrize('options, words', [
    (dict(target_rank=9), 'target_rank=9 must be'),
    (dict(warm_up=60, final=40), 'must leave some of the 100 steps'),
    (dict(beta1=1.), 'must lie between 0 and 1'),
    (dict(interval=0), 'interval=0 at 1 or above'),
])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        build(rank=6)[1].allocator(**{**dict(target_rank=2, steps=100, warm_up=10, final=30, interval=5), **options})


def run(folder, petl, name, **changes):
    cfg = toy_chance.config(folder / 'chance.py', folder / name, **{'model.backbone.petl': petl, **changes})
    runner = build_runner(cfg)
    runner.train()
    return runner, adapter_file.load(folder / name / 'adapter.safetensors')


def test_a_run_leaves_a_pruned_adapter(tmp_path):
    """The hook comes by itself; its options by naming it. The file loads anywhere and merges."""
    toy_chance.write(tmp_path)
    petl = [dict(type='AdaLoRA', rank=4, ops='qv')]
    runner, (tensors, header) = run(tmp_path, petl, 'plain')
    assert any(type(h).__name__ == 'AdaLoRAHook' for h in runner.hooks) and header['methods'][0]['rank'] == 4
    assert sum(len(t) for k, t in tensors.items() if k.endswith('.values')) == 8, 'two thirds of 4, rounded down, for each op'
    runner, (tensors, header) = run(
        tmp_path, petl, 'chosen', custom_hooks=[dict(type='mmpetl.AdapterHook'),
                                                dict(type='mmpetl.AdaLoRAHook', target_rank=2, warm_up=2, final=2)])
    ranks = [len(t) for k, t in tensors.items() if k.endswith('.values')]
    assert sum(ranks) == 8 and len(ranks) == 4
    backbone = runner.model.backbone
    backbone.train(False)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = features(backbone(x))
        fresh = build_runner(toy_chance.config(tmp_path / 'chance.py', tmp_path / 'x', **{'model.backbone.petl': petl})).model
        fresh.init_weights()
        mmpetl.load_adapter(fresh, str(tmp_path / 'chosen/adapter.safetensors'))
        fresh.train(False)
        assert torch.equal(features(fresh.backbone(x)), expected)
        mmpetl.merge(fresh)
        assert (features(fresh.backbone(x)) - expected).abs().max() <= 1e-5


def test_the_penalty_is_in_the_log_and_holds_the_vectors(tmp_path):
    toy_chance.write(tmp_path)
    petl, off = [dict(type='AdaLoRA', rank=4, ops='qv')], []
    for weight in (0., 20.):
        hook = dict(type='mmpetl.AdaLoRAHook', target_rank=4, penalty=weight)
        runner, _ = run(tmp_path, petl, f'w{weight}', custom_hooks=[dict(type='mmpetl.AdapterHook'), hook])
        off.append(runner.model.backbone.petl['adalora'].orthogonality('released').item())
        assert 'train/loss_orthogonality' in runner.message_hub.log_scalars
    assert off[1] < 0.9 * off[0]


def test_averaged_weights_are_not_pruned(tmp_path):
    toy_chance.write(tmp_path)
    hooks = [dict(type='mmpetl.AdapterHook'), dict(type='EMAHook', momentum=0.3),
             dict(type='mmpetl.AdaLoRAHook', target_rank=2, warm_up=2, final=2)]
    runner, (tensors, _) = run(tmp_path, [dict(type='AdaLoRA', rank=4, ops='qv')], 'ema', custom_hooks=hooks)
    assert [len(v) for k, v in tensors.items() if k.endswith('.values')] == [4] * 4
    triplets = runner.model.backbone.petl['adalora'].triplets()
    assert sum(int((t.values == 0).sum()) for t in triplets.values()) == 8
    assert not any((v == 0).any() for k, v in tensors.items() if k.endswith('.values')), 'the average'


def test_where_it_cannot_run(tmp_path):
    toy_chance.write(tmp_path)
    hooks = [dict(type='mmpetl.AdaLoRAHook')]
    with pytest.raises(ValueError, match=r"has no dict\(type='AdaLoRA'\)"):
        run(tmp_path, [dict(type='LoRA')], 'none', custom_hooks=hooks)
    with pytest.raises(ValueError, match='form=.x.: choose from paper, released'):
        run(tmp_path, [dict(type='AdaLoRA')], 'x', custom_hooks=[dict(type='mmpetl.AdaLoRAHook', form='x')])
    shown = SimpleNamespace(optim_wrapper={}, strategy=None)
    with pytest.raises(ValueError, match='whole gradients after each step of one optimizer, which dict'):
        mmpetl.registry.HOOKS.build(hooks[0]).before_train(shown)
