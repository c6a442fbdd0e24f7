# SPDX-License-Identifier: Apache-2.0
"""GPS, SCT and SPT against their formulas, what they choose against plain autograd and NumPy, the choice in a run and in two
processes; AdaLoRA in two processes."""

import copy
import math
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
import toy_chance
from cases import BACKBONE, features, perturb
from mmengine.hooks import Hook
from mmpretrain.structures import DataSample

import mmpetl
from mmpetl.hooks.choice import choose, contrastive_loss
from mmpetl.hooks.random_state import random_state
from mmpetl.registry import MODELS
from mmpetl.training.run import build_runner
from mmpetl.weights import adapter_file

LABELS = torch.tensor([0, 1, 1, 2, 0, 2])


def classifier(petl, **options):
    """A classifier in double precision on the same base each time."""
    backbone = dict(type='mmpetl.VisionTransformer', petl=petl, **BACKBONE['vit'].kwargs, **options)
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='mmpretrain.ImageClassifier', backbone=backbone,
        head=dict(type='mmpretrain.VisionTransformerClsHead', num_classes=3, in_channels=32),
        data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', mean=[0.] * 3, std=[1.] * 3, to_rgb=False)))
    generator = torch.Generator().manual_seed(1)
    for name, p in model.backbone.named_parameters():
        if not name.startswith('petl.'):
            torch.nn.init.normal_(p, std=0.2, generator=generator)
    model.backbone.petl.loaded()
    model.double().train(False)
    return model


def pictures(seed):
    return torch.randn(6, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(seed):
    """A batch as a data loader gives it."""
    return dict(inputs=pictures(seed), data_samples=[DataSample().set_gt_label(int(label)) for label in LABELS])


def textbook_loss(z, labels, temperature=0.07):
    """The supervised contrastive loss sample by sample."""
    z, terms = z / z.norm(dim=1, keepdim=True), []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        partners = [p for p in others if labels[p] == labels[i]]
        below = sum(torch.exp(z[i] @ z[a] / temperature) for a in others)
        if partners:
            terms.append(-sum(torch.log(torch.exp(z[i] @ z[p] / temperature) / below) for p in partners) / len(partners))
    return sum(terms) / len(terms)


def test_contrastive_loss():
    z = torch.randn(7, 5, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 0])  # one sample without a partner
    assert contrastive_loss(z, labels).item() == pytest.approx(textbook_loss(z, labels).item(), rel=1e-12)


@pytest.mark.parametrize('memory', ['standard', 'light'])
def test_gps_chooses_by_the_gradient_of_whole_weights(memory):
    """Two batches, two views each; the gradient of full fine-tuning tells the same weights."""
    model = classifier([dict(type='GPS', num_weights=3)], memory=memory)
    method = model.backbone.petl['gps']
    assert torch.equal(method.blocks['1']['q'].columns.long(),
                       method.frozen(1, 'q')[0].abs().topk(3).indices.sort(1).values), 'the largest, before'
    batches = [[batch(1), batch(2)], [batch(3), batch(4)]]
    assert choose(model, [method], batches, 3) == [f'GPS: {3 * 3 * (4 * 32 + 64 + 32):,} weights by their gradients']
    full = classifier([], tune=['*'])
    for views in batches:
        z = torch.cat([features(full.backbone(view['inputs'])) for view in views])
        textbook_loss(z, torch.cat([LABELS, LABELS])).backward()
    for i, layer in enumerate(full.backbone.layers):
        qkv = layer.attn.qkv.weight.grad
        gradients = dict(q=qkv[:32], k=qkv[32:64], v=qkv[64:], proj=layer.attn.proj.weight.grad,
                         fc1=layer.ffn.layers[0][0].weight.grad, fc2=layer.ffn.layers[1].weight.grad)
        for op, gradient in gradients.items():
            expected = gradient.abs().topk(3).indices.sort(1).values
            assert torch.equal(method.blocks[str(i)][op].columns.long(), expected), (i, op)
    assert method.chosen and not any(p.any() for p in method.parameters()) and not model.training


def test_gps_is_its_formula():
    method = classifier([dict(type='GPS', num_weights=2, ops='q,fc2')]).backbone.petl['gps']
    perturb(method, 0.5)
    for op, width in (('q', 32), ('fc2', 64)):
        rows = method.blocks['2'][op]
        mask = np.zeros((32, width))
        for r in range(32):
            for c, v in zip(rows.columns[r].tolist(), rows.values[r].tolist()):
                mask[r, c] = v
        x, y = torch.randn(2, 5, width, dtype=torch.float64), torch.randn(2, 5, 32, dtype=torch.float64)
        got = method.on_linear(2, op, x, y).detach().numpy()
        assert np.abs(got - y.numpy() - x.numpy() @ mask.T).max() <= 1e-12 and (mask != 0).sum() == 64
        assert np.abs(method.delta(2, op).detach().numpy() - mask).max() == 0


@pytest.mark.parametrize('subs', ['attn', ('attn', 'ffn')])
def test_sct_chooses_the_largest_channels_of_each_class(subs):
    model = classifier([dict(type='SCT', num_channels=5, subs=subs)])
    method, plain, streams = model.backbone.petl['sct'], BACKBONE['vit'].build_upstream().double(), {}
    plain.load_state_dict(classifier([]).backbone.state_dict())
    plain.train(False)
    choose(model, [method], [[batch(1), batch(2)], [batch(3)]], 3)
    for i, layer in enumerate(plain.layers):
        layer.ln2.register_forward_hook(lambda _, args, out, i=i: streams.setdefault((i, 'attn'), []).append(args[0]))
        layer.register_forward_hook(lambda _, args, out, i=i: streams.setdefault((i, 'ffn'), []).append(out))
    with torch.no_grad():
        for seed in (1, 3):
            plain(pictures(seed))
    for i, block in method.blocks.items():
        assert set(block) == ({'attn'} if subs == 'attn' else {'attn', 'ffn'})
        for sub, channels in block.items():
            stream = np.concatenate([s[:, 1:].numpy() for s in streams[int(i), sub]])
            labels = np.concatenate([LABELS.numpy()] * 2)
            norms = [np.sqrt((stream[labels == c]**2).sum((0, 1))) for c in range(3)]
            assert sorted(np.argsort(np.mean(norms, 0))[-5:]) == channels.index.tolist()
    assert method.chosen and method.tokenwise and model.backbone.petl.taps[-1].tokens_read == 1


def test_sct_is_its_formula():
    method = classifier([dict(type='SCT', num_channels=4, scale=0.3)]).backbone.petl['sct']
    channels = method.blocks['0']['attn']
    assert channels.weight.std() < 0.05 and channels.weight.any() and not channels.bias.any()
    perturb(method, 0.5)
    channels.index.copy_(torch.tensor([3, 7, 20, 31]))
    residual, y = (torch.randn(2, 5, 32, dtype=torch.float64) for _ in range(2))
    expected = (residual + y).numpy()
    part = expected[..., [3, 7, 20, 31]]
    expected[..., [3, 7, 20, 31]] = part + 0.3 * (part @ channels.weight.detach().numpy().T + channels.bias.detach().numpy())
    got = residual + method.on_branch(0, 'attn', residual, y, y)
    assert np.abs(got.detach().numpy() - expected).max() <= 1e-12


def squared_gradients(seeds, head):
    """Squares of the gradients of full fine-tuning, summed over batches, by block and op."""
    full, found = classifier([], tune=['*']), {}
    for seed in seeds:
        full.zero_grad()
        F.cross_entropy(features(full.backbone(pictures(seed))) @ head.t(), LABELS).backward()
        for i, layer in enumerate(full.backbone.layers):
            qkv, ffn = layer.attn.qkv.weight.grad.chunk(3), layer.ffn.layers
            for op, gradient in zip(('q', 'k', 'v', 'proj', 'fc1', 'fc2'),
                                    (*qkv, layer.attn.proj.weight.grad, ffn[0][0].weight.grad, ffn[1].weight.grad)):
                found[i, op] = found.get((i, op), 0) + gradient.numpy()**2
    return found


def published_choice(sensitivity, sizes, budget, threshold):
    """One sensitive weight more at a time, from none, until the budget is exceeded: modules, and places of the others."""
    places = list(sensitivity)
    flat = np.concatenate([sensitivity[p].ravel().astype(np.float32) for p in places])
    owner = np.repeat(np.arange(len(places)), [sensitivity[p].size for p in places])
    order, n, taken = np.argsort(-flat, kind='stable'), np.zeros(len(places), int), 0

    def needed():
        return sum(size if count >= threshold * size else count for count, size in zip(n, sizes))

    while True:
        n[owner[order[taken]]] += 1
        if needed() > budget:
            n[owner[order[taken]]] -= 1
            break
        taken += 1
    modules = {p for p, count, size in zip(places, n, sizes) if count >= threshold * size}
    cut = flat[order[taken - 1]]
    return modules, {p: np.flatnonzero(sensitivity[p].ravel().astype(np.float32) >= cut) for p in places
                     if p not in modules}, needed()


@pytest.mark.parametrize('structured, budget', [('lora', 900), ('lora', 2000), ('adapter', 1500)])
def test_spt_chooses_by_squares_of_whole_gradients(structured, budget):
    """A module where a tenth of its size is sensitive, single weights elsewhere, as many as the budget has room for."""
    model = classifier([dict(type='SPT', budget=budget, rank=2, structured=structured)])
    method, head = model.backbone.petl['spt'], torch.randn(3, 32, dtype=torch.float64)
    said = choose(model, [method], [[batch(1), batch(2)], [batch(3)]], 3, head)
    sensitivity = squared_gradients((1, 3), head)  # of the first view alone
    sizes = [2 * (cin + cout) if structured == 'lora' else 2 * cout * 2 + 2 + cout
             for cout, cin in (sensitivity[place].shape for place in method.dims)]
    modules, singles, needed = published_choice({p: sensitivity[p] for p in method.dims}, sizes, budget, 0.1)
    assert {place for place, (module, _) in method.layout.items() if module} == modules and 0 < len(modules) < 18
    for place, positions in singles.items():
        assert np.array_equal(method.index[method.layout[place][1]].numpy(), positions), place
    count = sum(map(len, singles.values()))
    assert said == [f'SPT: {len(modules)} modules and {count:,} single weights, {needed:,} parameters of {budget:,}']
    assert sum(p.numel() for p in method.parameters()) == budget >= needed and method.chosen and not model.training
    plain = classifier([])
    assert (features(model.backbone(pictures(5))) - features(plain.backbone(pictures(5)))).abs().max() <= 1e-12


@pytest.mark.parametrize('structured', ['lora', 'adapter'])
def test_spt_is_its_formula(structured):
    model = classifier([dict(type='SPT', budget=1500, rank=2, structured=structured)])
    method = model.backbone.petl['spt']
    choose(model, [method], [[batch(1)]], 3)
    values = method.values.detach().numpy()
    for module, part in method.layout.values():  # the start
        if module:
            inside = np.count_nonzero(values[part])
            assert inside and np.abs(values[part]).max() <= 1 / math.sqrt(32)
        else:
            assert not values[part].any()
    perturb(method, 0.5)
    at = 0  # parts follow each other in the order of the ops
    for (i, op), (module, part) in method.layout.items():
        (cin, cout), values = method.dims[i, op], method.values.detach().numpy()
        x, y = torch.randn(2, 5, cin, dtype=torch.float64), torch.randn(2, 5, cout, dtype=torch.float64)
        got = method.on_linear(i, op, x, y).detach().numpy() - y.numpy()
        if not module:
            matrix = np.zeros(cout * cin)
            matrix[method.index[part].numpy()] = values[part]
            want, at = x.numpy() @ matrix.reshape(cout, cin).T, at + part.stop - part.start
        elif structured == 'lora':
            down, up = values[at:at + 2 * cin].reshape(2, cin), values[at + 2 * cin:at + 2 * (cin + cout)].reshape(cout, 2)
            want, at = x.numpy() @ down.T @ up.T, at + 2 * (cin + cout)
        else:
            down, up, b_down, b_up = np.split(values[at:at + 5 * cout + 2], [2 * cout, 4 * cout, 4 * cout + 2])
            code = F.gelu(y @ torch.from_numpy(down.reshape(2, cout)).t() + torch.from_numpy(b_down)).numpy()
            want, at = code @ up.reshape(cout, 2).T + b_up, at + 5 * cout + 2
        assert np.abs(got - want).max() <= 1e-12, (i, op)
    fresh = classifier([dict(type='SPT', budget=1500, rank=2, structured=structured)])
    fresh.load_state_dict(model.state_dict())
    for other in (fresh, copy.deepcopy(fresh)):
        assert torch.equal(features(other.backbone(pictures(5))), features(model.backbone(pictures(5))))


@pytest.mark.parametrize('structured', ['lora', 'adapter'])
def test_spt_merges_what_is_linear(structured):
    model = classifier([dict(type='SPT', budget=1500, rank=2, structured=structured)])
    choose(model, [model.backbone.petl['spt']], [[batch(1)]], 3)
    perturb(model.backbone.petl, 0.1)
    before = features(model.backbone(pictures(5)))
    if structured == 'adapter':
        with pytest.raises(ValueError, match='SPT'):
            mmpetl.merge(model)
    else:
        mmpetl.merge(model)
        assert (features(model.backbone(pictures(5))) - before).abs().max() <= 1e-10 and not len(model.backbone.petl)


def test_two_processes_choose_as_one(tmp_path):
    """Sums of GPS, SCT and SPT are added up over processes; AdaLoRA sees gradients that are."""
    sys.path.insert(0, str(Path(__file__).parent))  # for the processes too
    from ddp_choices import BATCHES, allotted, chosen, work
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.start_processes(work, args=(port, tmp_path), nprocs=2, start_method='fork')
    (first, adapted, kept), (second, other, also) = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    one, half, (alone, kept_alone) = chosen(BATCHES), chosen(BATCHES[::2]), allotted(0, 1)
    # The same bits in both processes, chosen as by one that sees all batches.
    assert all(torch.equal(first[name], value) and torch.equal(second[name], value) for name, value in one.items())
    for name in ('gps.blocks.0.q.columns', 'sct.blocks.1.attn.index', 'spt.index', 'spt.values'):
        assert not torch.equal(half[name], one[name]), f'{name}: half of the data must tell something else'
    assert all(torch.equal(adapted[name], value) for name, value in other.items())
    assert max((adapted[name] - value).abs().max() for name, value in alone.items()) <= 1e-10
    assert kept_alone[-1] and not all(mask.all() for mask in kept_alone[-1].values())
    for masks in zip(kept, also, kept_alone):
        assert all(torch.equal(masks[n][name], mask) for n in (0, 1) for name, mask in masks[2].items())


class Note(Hook):
    """Notes the random numbers before and after the choice."""

    def __init__(self, priority, found):
        self.priority, self.found = priority, found

    def before_train(self, runner):
        self.found.append(random_state()['torch'])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp('choices')
    toy_chance.write(place)
    return place


def runner_of(folder, petl, name, **changes):
    return build_runner(toy_chance.config(folder / 'chance.py', folder / name, **{'model.backbone.petl': petl, **changes}))


def test_a_run_chooses_once_and_its_file_holds_the_choice(folder):
    petl, noted = [dict(type='GPS', num_weights=2), dict(type='SCT', num_channels=4), dict(type='SPT', budget=300, rank=2)], []
    runner = runner_of(folder, petl, 'first')
    runner.register_hook(Note('VERY_HIGH', noted))
    runner.register_hook(Note('VERY_LOW', noted))
    runner.train()
    assert torch.equal(*noted), 'the chance of the run is what it is without a choice'
    tensors, header = adapter_file.load(folder / 'first/adapter.safetensors')
    chosen = {k: v for k, v in tensors.items() if k.endswith(('columns', 'index', 'chosen', 'counts'))}
    assert len(chosen) == 2 * 6 + 2 + 2 + 3 and all(v for k, v in chosen.items() if k.endswith('chosen'))
    starts = runner_of(folder, petl, 'untrained').model.backbone.petl.state_dict()
    moved = [k for k, v in chosen.items() if not torch.equal(v, starts[k.removeprefix('backbone.petl.')])]
    assert len(moved) > 6
    again = runner_of(folder, petl, 'again', load_from=str(folder / 'first/adapter.safetensors'),
                      **{'train_dataloader.dataset.data_prefix': ''})
    before = []
    hook = next(h for h in again.hooks if type(h).__name__ == 'ChoiceHook')
    hook._batches = lambda *_: before.append(1)
    again.train()
    later = adapter_file.load(folder / 'again/adapter.safetensors')[0]
    assert not before and all(torch.equal(later[k], v) for k, v in chosen.items())
    assert not torch.equal(later['backbone.petl.gps.blocks.0.q.values'], tensors['backbone.petl.gps.blocks.0.q.values'])


def test_refusals(folder):
    with pytest.raises(ValueError, match='no method that chooses from data'):
        runner_of(folder, [dict(type='LoRA')], 'none', custom_hooks=[dict(type='mmpetl.ChoiceHook')]).train()
    with pytest.raises(ValueError, match='views must be a whole number >= 1'):
        mmpetl.registry.HOOKS.build(dict(type='mmpetl.ChoiceHook', views=0))
    model = classifier([dict(type='GPS')])
    one = dict(batch(1), data_samples=[DataSample().set_gt_label(0) for _ in LABELS])
    lonely = dict(inputs=pictures(1)[:1], data_samples=[DataSample().set_gt_label(0)])
    with pytest.raises(ValueError, match='no gradient came to any weight'):
        choose(model, [model.backbone.petl['gps']], [[lonely]], 3)
    with pytest.raises(ValueError, match='needs one label'):
        choose(model, [model.backbone.petl['gps']], [[dict(one, data_samples=[DataSample() for _ in LABELS])]], 3)
    with pytest.raises(ValueError, match='choose from gradients, loss'):
        both = classifier([dict(type='GPS'), dict(type='SPT', budget=300)])
        choose(both, list(both.backbone.petl.values()), [], 3)
    with pytest.raises(ValueError, match='SPT: no gradient came to any weight'):
        choose(both, [both.backbone.petl['spt']], [], 3)
    for cfg, words in ((dict(type='SPT'), 'budget=400000, but the adapted ops have 24576 weights'),
                       (dict(type='SPT', budget=300, structured='LoRA'), "must be 'lora' or 'adapter'"),
                       (dict(type='SPT', budget=300, threshold=2), r'must lie in \(0, 1\], got 2'),
                       (dict(type='GPS', num_weights=33), 'a neuron of q in block 0 has 32 weights'),
                       (dict(type='SCT', num_channels=33), 'the stream has 32 channels in block 0'),
                       (dict(type='SCT', subs='mlp'), "SCT: subs: unknown op 'm'")):
        with pytest.raises(ValueError, match=words) as error:
            BACKBONE['vit'].build([cfg])
        assert '\n' not in str(error.value)
