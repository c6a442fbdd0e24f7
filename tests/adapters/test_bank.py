# SPDX-License-Identifier: Apache-2.0
"""Many adapters on one base: each acts exactly as it does alone."""

import copy
import re
from pathlib import Path

import pytest
import torch
from cases import BACKBONE, ROW, features, perturb
from torch import nn
from toy_model import images, write_adapter, write_base, write_config

import mmpetl
from mmpetl.adapters.bank import AdapterBank
from mmpetl.training.build import build_model, read_config

LORA = [dict(type='LoRA', rank=2, ops='qkv')]


@pytest.fixture
def base(tmp_path):
    """A model without methods on its base."""
    model = build_model(read_config(str(write_config(tmp_path, []))))
    model.backbone.init_weights()
    perturb(model.head, 0.3)
    return model.eval()


def run(model, x):
    with torch.no_grad():
        return model(x).clone()


def filled(base, *names, std=0.1):
    bank = AdapterBank(base)
    for seed, name in enumerate(names):
        petl = {
            'lora': LORA,
            'wide': [dict(type='LoRA', rank=4, ops='q,proj,fc1', alpha=8)],
            'apt': [dict(type='APT', num_tokens=3)],
            'former': [dict(type='AdaptFormer', mid_dims=4, drop_rate=0.)],
            'ssf': [dict(type='SSF')],
            'tuned': LORA
        }[name]
        bank.add(name, petl, tune=['ln1.*', 'layers.1.ln2.*'] if name == 'tuned' else ())
        perturb(bank[name].methods[next(iter(bank[name].methods))], std, seed)
        perturb(base.head, 0.3, seed)
        if name == 'tuned':
            with torch.no_grad():
                base.backbone.ln1.weight.mul_(1.5)
    return bank


def test_what_a_bank_prints(base, tmp_path):
    bank = filled(base, 'lora', 'ssf', 'tuned')
    bank.save('lora', str(tmp_path / 'stored.safetensors'))
    bank.serve(str(tmp_path))
    assert repr(bank).splitlines() == [
        "AdapterBank on ImageClassifier: 4 adapters, in use: 'tuned'", "  'lora': LoRA", "  'ssf': SSF",
        "  'tuned': LoRA, tune=['ln1.*', 'layers.1.ln2.*']", "  'stored': on disk"]
    bank.switch(None)
    assert 'in use: none, the model is the plain base' in str(bank) and bank.in_memory == []
    for number in range(20):
        bank.add(f'{number}', ())
    assert str(bank).splitlines()[-1] == '  and 4 more' and "  '0': no method" in str(bank)


def test_each_adapter_acts_as_alone(base, tmp_path):
    x, before = images(), run(base, images())
    keys = set(base.state_dict())
    bank = filled(base, 'lora', 'former', 'tuned', 'apt')
    assert bank.names == ['lora', 'former', 'tuned', 'apt'] and bank.active == 'apt' and 'lora' in bank
    for name in bank.names:
        bank.save(name, str(tmp_path / f'{name}.safetensors'))
        bank.switch(name)
        assert {k
                for k in base.state_dict()
                if 'petl' in k} == {f'backbone.petl.{k}'
                                    for k in base.backbone.petl.state_dict()} != set()
        alone = build_model(read_config(str(write_config(tmp_path, []))))
        alone.backbone.init_weights()
        fresh = AdapterBank(alone)
        fresh.add_file('x', str(tmp_path / f'{name}.safetensors'))
        alone.eval()
        assert torch.equal(run(alone, x), run(base, x))
        assert (run(base, x) - before).abs().max() > 1e-3
        trains = {n for n, p in base.named_parameters() if p.requires_grad}
        assert ('backbone.ln1.weight' in trains) == (name == 'tuned') and 'head.fc.weight' in trains
    bank.switch(None)
    assert torch.equal(run(base, x), before) and set(base.state_dict()) == keys


def test_disable_and_using(base):
    x = images()
    with torch.no_grad():
        plain = features(base.backbone(x)).clone()
    bank = filled(base, 'lora', 'tuned')
    got = run(base, x)
    with bank.disabled():
        head = base.head
        with torch.no_grad():
            assert torch.equal(features(base.backbone(x)), plain)
    assert head is bank['tuned'].modules['head'] and torch.equal(run(base, x), got)
    with bank.using('lora'):
        assert bank.active == 'lora'
    assert bank.active == 'tuned' and torch.equal(run(base, x), got)
    bank.delete('tuned')
    assert bank.active is None and bank.names == ['lora']
    with torch.no_grad():
        assert torch.equal(features(base.backbone(x)), plain)


def test_an_attached_model_brings_its_adapter(tmp_path):
    config = write_config(tmp_path, LORA, tune=['ln1.*'])
    model = write_adapter(config, tmp_path / 'a.safetensors')
    x, first = images(), run(model, images())
    bank = AdapterBank(model, 'first')
    bank.add('second', [dict(type='APT', num_tokens=2)])
    with torch.no_grad():
        stored = torch.load(tmp_path / 'base.pth', weights_only=True)['state_dict']
        assert torch.equal(model.backbone.ln1.weight, stored['ln1.weight'])
    bank.switch('first')
    assert torch.equal(run(model, x), first)


def test_training_the_active_one_leaves_the_others(base):
    bank = filled(base, 'lora', 'tuned')
    others = {k: v.clone() for k, v in bank.tensors('lora').items()}
    trunk = {n: p.clone() for n, p in base.backbone.named_parameters() if not p.requires_grad}
    before = {k: v.clone() for k, v in bank.tensors('tuned').items()}
    optimizer = torch.optim.SGD([p for p in base.parameters() if p.requires_grad], 0.1)
    base.train()
    base(images()).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(v, others[k]) for k, v in bank.tensors('lora').items())
    assert all(torch.equal(p, trunk[n]) for n, p in base.backbone.named_parameters() if n in trunk)
    after = {k: v.clone() for k, v in bank.tensors('tuned').items()}
    assert not any(torch.equal(after[k], before[k]) for k in before)
    bank.switch('lora')
    assert all(torch.equal(v, after[k]) for k, v in bank.tensors('tuned').items()) and base.training


def test_files_with_other_classes(base, tmp_path):
    five = write_config(tmp_path, LORA, 'five.py', classes=5)
    alone = write_adapter(five, tmp_path / 'five.safetensors', name='five')
    bank = filled(base, 'lora')
    header = bank.add_file('five', str(tmp_path / 'five.safetensors'))
    assert header['name'] == 'five' and base.head.num_classes == 5
    assert torch.equal(run(base, images()), run(alone, images()))
    bank.switch('lora')
    assert run(base, images()).shape == (2, 3)


def test_a_wrong_base_is_refused_and_nothing_stays(base, tmp_path):
    bank = filled(base, 'lora')
    before = run(base, images())
    (tmp_path / 'else').mkdir()
    other = write_base(tmp_path / 'else')
    state = torch.load(other, weights_only=True)['state_dict']
    torch.save(dict(state_dict={k: v * 1.01 for k, v in state.items()}), other)
    write_adapter(write_config(tmp_path / 'else', LORA), tmp_path / 'b.safetensors')
    with pytest.raises(ValueError, match='wrong base'):
        bank.add_file('b', str(tmp_path / 'b.safetensors'))
    assert bank.names == ['lora'] and bank.active == 'lora' and torch.equal(run(base, images()), before)


def test_hot_swap(base, tmp_path):
    bank = filled(base, 'lora', 'tuned')
    for name in ('lora', 'tuned'):
        bank.save(name, str(tmp_path / f'{name}.safetensors'))
    with bank.using('lora'):
        wanted = run(base, images())
    for active in ('lora', 'tuned'):
        bank.switch(active)
        pointers = {k: v.data_ptr() for k, v in bank.tensors('lora').items()}
        for tensor in bank.tensors('lora').values():
            tensor.zero_()
        bank.hot_swap('lora', str(tmp_path / 'lora.safetensors'))
        assert {k: v.data_ptr() for k, v in bank.tensors('lora').items()} == pointers
        with bank.using('lora'):
            assert torch.equal(run(base, images()), wanted)
    with pytest.raises(ValueError, match='only tensors can be swapped'):
        bank.hot_swap('lora', str(tmp_path / 'tuned.safetensors'))
    write_adapter(write_config(tmp_path, [dict(LORA[0], alpha=9)]), tmp_path / 'scaled.safetensors')
    with pytest.raises(ValueError, match='alpha=9 in the adapter and alpha=None here.*only tensors can be swapped'):
        bank.hot_swap('lora', str(tmp_path / 'scaled.safetensors'))
    write_adapter(write_config(tmp_path, LORA, classes=4), tmp_path / 'four.safetensors')
    with pytest.raises(ValueError, match='head has num_classes=4 in the adapter and num_classes=3 here'):
        bank.hot_swap('lora', str(tmp_path / 'four.safetensors'))
    bank.switch('lora')
    mmpetl.merge(base)
    for action in (lambda: bank.hot_swap('lora', str(tmp_path / 'lora.safetensors')), lambda: bank.switch('tuned'),
                   lambda: bank.add('new', LORA)):
        with pytest.raises(ValueError, match='merged into the base'):
            action()


def test_refusals(base):
    bank = filled(base, 'lora')
    for action, said in [(lambda: bank.switch('lora2'), "did you mean 'lora'"),
                         (lambda: bank.add('lora', LORA), 'already'), (lambda: bank.add('a/b', LORA), 'letters'),
                         (lambda: bank.add('b', [dict(type='LoRa')]), "did you mean 'LoRA'"),
                         (lambda: bank.add('b', LORA, tune=['lnx']), 'matches no parameter'),
                         (lambda: bank.add('b', LORA, trunk='on'), 'trunk must be'),
                         (lambda: bank.add('b', LORA, head=dict(hed={})), "did you mean 'head'"),
                         (lambda: bank.combine('c', {}), 'nothing to combine'),
                         (lambda: bank.combine('c', dict(lora=1), 'tie'), "did you mean 'ties'"),
                         (lambda: bank.combine('c', dict(lora=1), 'ties', density=0), 'density')]:
        with pytest.raises(ValueError, match=said):
            action()
    assert bank.names == ['lora'] and bank.active == 'lora'
    bank.add('apt', [dict(type='APT', num_tokens=2)])
    with pytest.raises(ValueError, match=r'apt \(APT\) is not a change of weights'):
        bank.combine('c', dict(lora=1, apt=1))
    assert bank.names == ['lora', 'apt']


def test_linear_combination(base, tmp_path):
    """Half of two LoRAs is one LoRA of stacked factors; a single adapter with factor 1 is its merged self; zero is the
    base."""
    bank = filled(base, 'lora', 'wide', 'tuned', 'ssf', std=0.05)
    bank.combine('same', dict(ssf=1.))
    with bank.using('ssf'):
        wanted = run(base, images())
    assert (run(base, images()) - wanted).abs().max() <= 1e-5
    bank.combine('nothing', dict(lora=0., tuned=0.))
    with torch.no_grad():
        combined = features(base.backbone(images())).clone()
        bank.switch(None)
        assert (features(base.backbone(images())) - combined).abs().max() <= 1e-5
    bank.combine('both', dict(lora=.5, wide=2.), activate=False)
    assert bank.active is None
    lora, wide = bank['lora'].methods['lora'], bank['wide'].methods['lora']
    bank.switch('both')
    stored = torch.load(tmp_path / 'base.pth', weights_only=True)['state_dict']
    q = base.backbone.layers[0].attn.qkv.weight[:32] - stored['layers.0.attn.qkv.weight'][:32]
    assert (q - .5 * lora.delta(0, 'q') - 2 * wide.delta(0, 'q')).abs().max() <= 1e-6
    bank.save('both', str(tmp_path / 'both.safetensors'))
    got = run(base, images())
    fresh = build_model(read_config(str(write_config(tmp_path, []))))
    fresh.backbone.init_weights()
    other = AdapterBank(fresh.eval())
    other.add_file('both', str(tmp_path / 'both.safetensors'))
    assert torch.equal(run(fresh, images()), got)


@pytest.mark.peers
def test_ties_equals_peft():
    merge_utils = pytest.importorskip('peft.utils.merge_utils')
    from mmpetl.adapters.combine import combine_deltas
    torch.manual_seed(0)
    changes = [dict(w=torch.randn(7, 5)) for _ in range(3)]
    got = combine_deltas(changes, [1., .5, 2.], 'ties', density=0.4)['w']
    wanted = merge_utils.ties([c['w'] for c in changes], torch.tensor([1., .5, 2.]), 0.4)
    assert (got - wanted).abs().max() <= 1e-6


def test_dare_keeps_the_expected_sum():
    from mmpetl.adapters.combine import combine_deltas
    changes = [dict(w=torch.ones(200, 200)), dict(w=torch.full((200, 200), 2.), v=torch.ones(3))]
    got = combine_deltas(changes, [1., 1.], 'dare', density=0.25, seed=3)
    assert set(got['w'].unique().tolist()) == {0., 4., 8., 12.}
    assert abs(got['w'].mean() - 3) < 0.05 and got['v'].shape == (3, )
    again = combine_deltas(changes, [1., 1.], 'dare', density=0.25, seed=3)
    assert torch.equal(again['w'], got['w'])
    assert torch.equal(combine_deltas(changes, [1., 1.], 'dare', density=1.)['w'], torch.full((200, 200), 3.))


# -- several adapters in one batch ------------------------------------------------------------------------------------

ROWS = {
    'lora': [dict(type='LoRA', rank=2, ops='qkv')], 'fc': [dict(type='LoRA', rank=3, ops='proj,fc1,fc2', alpha=6)],
    'former': [dict(type='AdaptFormer', mid_dims=4, drop_rate=0.)],
    'adapter': [dict(type='Adapter', mid_dims=4)], 'ssf': [dict(type='SSF')]}
KEYS = {
    'vpt': [dict(type='VPT', num_tokens=3)],
    'vpt5': [dict(type='VPT', num_tokens=5)],
    'apt': [dict(type='APT', num_tokens=4)],
    'prefix': [dict(type='Prefix', num_tokens=2, mid_dims=4)],
    'two': [dict(type='VPT', num_tokens=2), dict(type='LoRA', rank=2)],
    'e2vpt': [dict(type='E2VPT', num_tokens=2, num_kv_tokens=3, segments=4)]
}


def mixed_bank(backbone, kinds):
    torch.manual_seed(0)
    model = backbone.build()
    perturb(model, 0.1)
    bank = AdapterBank(model)
    for seed, (name, petl) in enumerate(kinds.items()):
        bank.add(name, petl)
        perturb(model.petl, 0.2, seed)
    model.eval()
    return model, bank


def check_mixed(model, bank, ids, backbone):
    x = backbone.inputs(len(ids))
    with torch.no_grad():
        with bank.mixed(ids) as mixed:
            got = features(mixed(x)).clone()
        assert bank.active is not None
        for i, name in enumerate(ids):
            with bank.using(name):
                alone = features(model(x[i:i + 1]))
            assert (got[i:i + 1] - alone).abs().max() <= 1e-5 * max(1, alone.abs().max()), name
        for a in range(len(ids)):
            for b in range(a):
                if ids[a] != ids[b]:
                    with bank.using(ids[b]):
                        other = features(model(x[a:a + 1]))
                    assert (got[a:a + 1] -
                            other).abs().max() > 1e-3, 'the adapters must differ for the check to mean anything'


@pytest.mark.parametrize('name', list(BACKBONE))
def test_rows_in_one_batch(name):
    model, bank = mixed_bank(BACKBONE[name], ROWS)
    check_mixed(model, bank, ['former', 'lora', None, 'fc', 'adapter', 'lora', 'ssf'], BACKBONE[name])


@pytest.mark.parametrize('name', ['vit', 'clip', 'videomae'])
def test_keys_and_prompts_in_one_batch(name):
    model, bank = mixed_bank(BACKBONE[name], {**KEYS, 'lora': ROWS['lora']})
    check_mixed(model, bank, ['vpt', 'apt', 'lora', 'vpt5', None, 'two', 'prefix', 'e2vpt', 'apt'], BACKBONE[name])
    check_mixed(model, bank, ['apt', 'lora', 'prefix'], BACKBONE[name])
    check_mixed(model, bank, ['vpt', 'two', 'vpt'], BACKBONE[name])
    check_mixed(model, bank, ['apt', 'apt'], BACKBONE[name])


def test_keys_and_prompts_in_windows():
    """Every window of a sample sees the sample's own keys and prompts; shifted windows and their masks stay."""
    kinds = {name: [dict(cfg, **(dict(pool_prompts=False) if 'VPT' in cfg['type'] else {})) for cfg in petl]
             for name, petl in KEYS.items()}
    backbone = BACKBONE['swin']
    model, bank = mixed_bank(backbone, {**kinds, 'lora': ROWS['lora']})
    check_mixed(model, bank, ['vpt', 'apt', 'lora', 'vpt5', None, 'two', 'prefix', 'e2vpt', 'apt'], backbone)
    check_mixed(model, bank, ['vpt', 'two', 'vpt'], backbone)
    model, bank = mixed_bank(backbone, {'a': KEYS['vpt'], 'b': KEYS['vpt']})
    check_mixed(model, bank, ['a', 'b', 'a'], backbone)
    backbone = BACKBONE['video_swin']
    model, bank = mixed_bank(backbone, {**{k: KEYS[k] for k in ('apt', 'prefix')}, 'lora': ROWS['lora']})
    check_mixed(model, bank, ['apt', 'lora', None, 'prefix', 'apt'], backbone)
    check_mixed(model, bank, ['apt', 'apt'], backbone)


def test_shallow_prompts_in_one_batch():
    kinds = {
        'three': [dict(type='VPT', num_tokens=3, deep=False)],
        'five': [dict(type='VPT', num_tokens=5, deep=False)],
        'lora': ROWS['lora'],
        'deep': KEYS['vpt'],
        'apt': KEYS['apt']
    }
    model, bank = mixed_bank(BACKBONE['vit'], kinds)
    check_mixed(model, bank, ['five', 'lora', 'three', None], BACKBONE['vit'])
    with pytest.raises(ValueError, match='different blocks'), bank.mixed(['five', 'deep']):
        pass
    with pytest.raises(ValueError, match='extra keys and values'), bank.mixed(['five', 'apt']):
        pass
    check_mixed(model, bank, ['deep', 'apt'], BACKBONE['vit'])


def test_what_cannot_be_mixed(base):
    bank = filled(base, 'lora', 'tuned')
    with pytest.raises(ValueError, match="adapter 'tuned' changes base parameters"), bank.mixed(['lora', 'tuned']):
        pass
    assert bank.active == 'tuned'
    with pytest.raises(ValueError, match='no adapter'), bank.mixed(['lor']):
        pass
    for batch in (2, 6):
        with pytest.raises(ValueError, match='3 adapter_ids'), bank.mixed(['lora', 'lora', None]) as backbone:
            backbone(images(batch))
    model, swin = mixed_bank(BACKBONE['swin'], {'vpt': KEYS['vpt'], 'vpt5': KEYS['vpt5']})
    with pytest.raises(ValueError, match='pooled prompts of different numbers'), swin.mixed(['vpt', 'vpt5']):
        pass
    model, clips = mixed_bank(ROW['clip_frames'], {'lora': ROWS['lora']})
    with pytest.raises(ValueError, match='clips that are read as frames cannot be mixed'), clips.mixed(['lora', None]):
        pass
    model, vit = mixed_bank(BACKBONE['vit'], {'side': [dict(type='VQT', num_tokens=1)]})
    with pytest.raises(ValueError, match='replaces the output'), vit.mixed(['side']):
        pass


def test_scores_with_heads_of_different_sizes(base):
    bank = filled(base, 'lora', 'former')
    bank.add('five', KEYS['vpt'], head=dict(head=dict(type='LinearClsHead', num_classes=5, in_channels=32)))
    perturb(base.head, 0.3)
    base.eval()
    ids, x = ['five', 'lora', None, 'former', 'five'], images(5)
    with torch.no_grad():
        scores = bank.predict(x, ids)
    assert [len(s) for s in scores] == [5, 3, 3, 3, 5] and bank.active == 'five'
    for i, name in enumerate(ids):
        with bank.using(name):
            assert (run(base, x[i:i + 1])[0] - scores[i]).abs().max() <= 1e-5


def _own(kind, classes=3):
    """A model of transformers or of one's own, and its heads: name -> width."""
    import transformers
    from transformers import ViTConfig
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8)
    torch.manual_seed(0)
    if kind == 'videomae':
        return transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(
            **sizes, num_frames=2, num_labels=classes)), 'classifier'
    if kind == 'transformers':
        return transformers.ViTForImageClassification(ViTConfig(**sizes, num_labels=classes)), 'classifier'
    tower, last = BACKBONE['vit'].build_upstream(), 'head' if kind == 'head' else 'last'
    width = tower.embed_dims

    class Own(nn.Module):

        def __init__(self):
            super().__init__()
            self.tower = tower
            setattr(self, last, nn.Linear(width, classes))
            if kind == 'two layers':
                self.norm = nn.LayerNorm(width)

        def forward(self, x):
            x = self.tower(x)[-1]
            x = getattr(self, last)(self.norm(x) if kind == 'two layers' else x.relu() if last == 'head' else x)
            return x.softmax(-1) if kind == 'softmax' else x

    return Own(), last


@pytest.mark.parametrize('kind, passes', [('transformers', 1), ('linear', 1), ('head', 1), ('two layers', 4), ('softmax', 5),
                                          ('videomae', 4)])
def test_scores_of_models_that_are_no_classifiers_of_openmmlab(kind, passes):
    """One pass where the head is the last step, else one per adapter; the scores are those of the model in use alone."""
    if kind in ('transformers', 'videomae'):
        pytest.importorskip('transformers')
    model, head = _own(kind)
    bank = AdapterBank(model)
    for number, (name, petl) in enumerate(dict(lora=LORA, more=LORA, vpt=KEYS['vpt']).items()):
        bank.add(name, petl, head={head: nn.Linear(getattr(model, head).in_features, 5 + number)})
        perturb(next(iter(bank[name].methods.values())), 0.1, number)
    model.eval()
    ids, x, seen = ['vpt', 'lora', None, 'more', 'lora'], images(5), []
    x = x[:, None].repeat(1, 2, 1, 1, 1) if kind == 'videomae' else x
    handle = bank.backbone.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        scores = bank.predict(x, ids)
        handle.remove()
        assert [len(s) for s in scores] == [7, 5, 3, 6, 5] and bank.active == 'vpt' and len(seen) == passes
        for i, name in enumerate(ids):
            with bank.using(name):
                alone = model(x[i:i + 1])
            assert (getattr(alone, 'logits', alone)[0] - scores[i]).abs().max() <= 1e-5


def test_the_section_off_again_runs(base, tmp_path, monkeypatch):
    """docs/adapters.md: the block that takes methods off."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[2] / 'docs/adapters.md').read_text(encoding='utf-8')
    block, = re.findall(r'<!-- off again: run by the tests -->\n```python\n(.*?)```', page, re.S)
    block = block.replace('...  ', "perturb(bank['mine'].methods['lora'], 0.1); trained = model(images).clone()  ")
    scope = dict(mmpetl=mmpetl, torch=torch, model=base.eval(), images=images(2), perturb=perturb)
    with torch.no_grad():
        exec(compile(block, 'docs/adapters.md', 'exec'), scope)
        assert (base(images(2)) - scope['trained']).abs().max() <= 1e-5 < (scope['before'] - scope['trained']).abs().max()
    assert not len(base.backbone.petl) and scope['bank'].names == ['again']


def test_gradients_in_one_batch():
    """A mixed step gives every adapter the gradient of its own samples."""
    model, bank = mixed_bank(BACKBONE['vit'], {'lora': ROWS['lora'], 'apt': KEYS['apt']})
    model.double()
    for name in bank.names:
        for method in bank[name].methods.values():
            method.double()
    x = BACKBONE['vit'].inputs(4, dtype=torch.float64)
    ids = ['lora', 'apt', 'lora', 'apt']
    with bank.mixed(ids) as mixed:
        features(mixed(x)).square().sum().backward()
    got = {n: [p.grad.clone() for m in bank[n].methods.values() for p in m.parameters()] for n in bank.names}
    for name in bank.names:
        method = next(iter(bank[name].methods.values()))
        method.zero_grad()
        with bank.using(name):
            features(model(x[[i for i, n in enumerate(ids) if n == name]])).square().sum().backward()
        assert all((p.grad - g).abs().max() <= 1e-9 for p, g in zip(method.parameters(), got[name]))


def test_copies_of_a_model_in_a_bank(base):
    bank = filled(base, 'lora')
    other = copy.deepcopy(base)
    perturb(other.backbone.petl, 1.)
    assert not torch.equal(run(other, images()), run(base, images()))
    assert bank.active == 'lora'
