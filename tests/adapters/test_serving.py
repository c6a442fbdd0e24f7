# SPDX-License-Identifier: Apache-2.0
"""Adapters served from disk: the same outputs as added ones, bounded memory, threads, and batches of any adapters."""

import copy
import gc
import threading
import time
import weakref

import pytest
import timm
import torch
from cases import BACKBONE, FOREIGN, METHODS, ROW, features, perturb
from hub_server import Hub, as_endpoint
from torch.utils._python_dispatch import TorchDispatchMode
from toy_model import images, write_adapter, write_config

import mmpetl
from mmpetl.adapters import store
from mmpetl.adapters.bank import AdapterBank
from mmpetl.training.build import build_model, read_config
from mmpetl.weights import adapter_file

LORA = [dict(type='LoRA', rank=2)]
VIT = BACKBONE['vit']
#: Ten kinds of adapter with heads of their own sizes: (methods, classes, tuned).
KINDS = {
    'lora': (LORA, 3, ()), 'wide': ([dict(type='LoRA', rank=4, ops='q,proj,fc1', alpha=8)], 5, ()),
    'former': ([dict(type='AdaptFormer', mid_dims=4, drop_rate=0.)], 3, ()), 'apt': ([dict(type='APT', num_tokens=3)], 3, ()),
    'shallow': ([dict(type='VPT', num_tokens=2, deep=False)], 3, ()), 'deep': ([dict(type='VPT', num_tokens=2)], 4, ()),
    'tuned': (LORA, 3, ('ln1.*', )), 'dora': ([dict(type='DoRA', rank=2)], 3, ()), 'probe': ([], 6, ()),
    'side': ([dict(type='VQT', num_tokens=1)], 3, ())}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """One adapter file of every kind, on one base; no side method, whose head is another one."""
    top = tmp_path_factory.mktemp('adapters')
    (top / 'files').mkdir()
    for seed, (name, (petl, classes, tune)) in enumerate(KINDS.items()):
        if name != 'side':
            write_adapter(write_config(top, petl, f'{name}.py', classes, tune), top / 'files' / f'{name}.safetensors', seed)
    write_config(top, [], 'plain.py')
    return top


def plain(folder):
    model = build_model(read_config(str(folder / 'plain.py')))
    model.backbone.init_weights()
    return model.eval()


def served(folder, **limits):
    bank = AdapterBank(plain(folder))
    bank.serve(str(folder / 'files'), **limits)
    return bank


@pytest.fixture(scope='module')
def wanted(folder):
    """Name -> scores of the adapter alone."""
    bank, scores = AdapterBank(plain(folder)), {}
    for path in sorted((folder / 'files').iterdir()):
        bank.add_file(path.stem, str(path))
        bank.model.eval()
        with torch.no_grad():
            scores[path.stem] = bank.model(images(), mode='tensor').clone()
    return scores


@torch.no_grad()
def predict(bank, names):
    """Every sample is the first picture, under the adapter of its name."""
    return bank.predict(images()[:1].expand(len(names), -1, -1, -1), names)


def check(bank, names, wanted):
    for name, scores in zip(names, predict(bank, names)):
        assert (scores - wanted[name][0]).abs().max() <= 1e-5 * max(1, wanted[name].abs().max()), name


# -- right outputs ----------------------------------------------------------------------------------------------------


def test_any_adapters_in_any_batch(folder, wanted):
    """Tuned parameters, prompts that do not fit together, heads of several sizes: each row under its own adapter."""
    bank = served(folder, keep=3)
    assert bank.names == sorted(wanted) and not bank.in_memory
    check(bank, list(wanted), wanted)
    assert len(bank.in_memory) <= 3
    for names in (['shallow', 'apt', 'lora', 'shallow'], ['tuned', 'tuned'], ['deep', 'dora', 'deep', 'probe'], ['wide']):
        check(bank, names, wanted)
        for name in names:
            with bank.using(name) as model, torch.no_grad():
                assert torch.equal(model(images(), mode='tensor'), wanted[name]), name
    assert bank.active is None and len(bank.in_memory) <= 3


@pytest.mark.parametrize('case', [c for c in METHODS if 'vit' in c.on], ids=lambda c: c.name)
def test_every_method_from_disk(case, tmp_path):
    """Beside the model or, where a method looks at the base, inside it: what is read is what was saved."""
    torch.manual_seed(0)
    base = VIT.build_upstream()
    model = copy.deepcopy(base)
    mmpetl.attach(model, case.petl)
    perturb(model.petl, 0.1, 1)
    mmpetl.save_adapter(model, str(tmp_path / 'a.safetensors'))
    x = VIT.inputs(2)
    state = torch.get_rng_state()
    bank = AdapterBank(base)
    bank.serve(str(tmp_path))
    model.eval(), base.eval()
    with torch.no_grad():
        with bank.using('a') as again:
            assert torch.equal(features(again(x)), features(model(x)))
    if case.name not in ('E2VPT', 'RepAdapter'):  # these hold more than their file, and are built inside the model
        assert torch.equal(torch.get_rng_state(), state), 'serving draws no random numbers'


def test_heads_inside_the_backbone(tmp_path):
    """timm keeps the head inside the model: every adapter has its own all the same."""
    torch.manual_seed(0)
    base = timm.create_model('test_vit', num_classes=3).eval()
    x, alone = torch.randn(2, 3, 160, 160), {}
    for seed in range(2):
        model = copy.deepcopy(base)
        mmpetl.attach(model, LORA)
        perturb(model.petl, 0.2, seed)
        perturb(model.head, 0.2, seed)
        mmpetl.save_adapter(model, str(tmp_path / f'{seed}.safetensors'))
        alone[str(seed)] = model.eval()(x).detach()
    alone[None] = base(x).detach()
    for way in ('serve', 'add_file'):
        bank = AdapterBank(copy.deepcopy(base))
        if way == 'serve':
            bank.serve(str(tmp_path))
        else:
            for name in '01':
                bank.add_file(name, str(tmp_path / f'{name}.safetensors'))
        bank.model.eval()
        with torch.no_grad():
            for name in ('0', '1', None, '0', '1'):
                with bank.using(name) as model:
                    assert torch.equal(model(x), alone[name]), (way, name)
            for row, name in enumerate(['1', '0']):
                assert torch.allclose(bank.predict(x, ['1', '0'])[row], alone[name][row], atol=1e-6)


def test_folders_of_peft_and_the_hub(folder, wanted, tmp_path):
    model = build_model(read_config(str(folder / 'lora.py')))
    mmpetl.load_adapter(model, str(folder / 'files/lora.safetensors'))
    mmpetl.save_peft(model, str(tmp_path / 'peft'))
    with as_endpoint(Hub(), tmp_path / 'cache') as hub:
        hub.commit('user/deep', {'adapter.safetensors': (folder / 'files/deep.safetensors').read_bytes()})
        bank = AdapterBank(plain(folder))
        bank.serve({'lora': tmp_path / 'peft', 'deep': 'hf://user/deep'}, keep=1)
        check(bank, ['lora', 'deep', 'lora'], wanted)
        bank.add_file('again', str(tmp_path / 'peft'))
        check(bank, ['again', 'deep'], dict(wanted, again=wanted['lora']))


def test_clips_that_are_read_as_frames():
    """They cannot stand in one batch, so each adapter gets one of its own."""
    backbone = ROW['clip_frames']
    model = backbone.build([])
    bank = AdapterBank(model)
    for seed, name in enumerate('ab'):
        bank.add(name, LORA)
        perturb(model.petl, 0.2, seed)
    model.eval()
    x = backbone.inputs(3)
    with torch.no_grad():
        got = bank.predict(x, ['b', 'a', 'b'])
        for row, name in enumerate('bab'):
            with bank.using(name):
                assert (model(x[row:row + 1])[-1][0] - got[row]).abs().max() < 1e-5


def test_models_of_transformers():
    """Without a head the last hidden state, else the logits."""
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                                    image_size=32, patch_size=8)
    torch.manual_seed(0)
    bank = AdapterBank(transformers.ViTModel(config, add_pooling_layer=False))
    for seed, name in enumerate('ab'):
        bank.add(name, LORA)
        perturb(bank.backbone.petl, 0.2, seed)
    bank.model.eval()
    with torch.no_grad():
        got = bank.predict(images(3), ['b', 'a', None])
        for row, name in enumerate(['b', 'a', None]):
            with bank.using(name) as model:
                alone = model(images(3)[row:row + 1]).last_hidden_state[0]
            assert got[row].shape == alone.shape and (alone - got[row]).abs().max() < 1e-5
    whole = AdapterBank(transformers.ViTForImageClassification(config).eval())
    inner = whole.model.vit
    whole.add('a', LORA)
    assert whole.model.vit is inner and set(whole['a'].modules) == {'classifier'}
    perturb(whole.model.classifier, 0.5)
    with whole.using('a') as model:
        one = model(images()).logits
    with whole.using(None) as model:
        assert not torch.equal(model(images()).logits, one), 'every adapter has its own classifier'
    with torch.no_grad():
        got = whole.predict(images(), ['a', None])
    assert (got[0] - one[0]).abs().max() < 1e-5 < (got[1] - one[1]).abs().max()


# -- memory -----------------------------------------------------------------------------------------------------------


def test_the_last_used_stay(folder, wanted):
    bank = served(folder, keep=3)
    for name in ('lora', 'wide', 'former', 'lora', 'apt'):
        bank[name]
    assert bank.in_memory == ['former', 'lora', 'apt']
    gone = weakref.ref(bank['former'].methods['adaptformer'] if 'adaptformer' in bank['former'].methods else next(
        iter(bank['former'].methods.values())))
    for name in ('wide', 'deep', 'probe'):
        bank[name]
    gc.collect()
    assert gone() is None, 'what is let go is freed'
    before = bank._store.reads
    check(bank, ['wide', 'deep'], wanted)
    assert bank._store.reads == before, 'what is in memory is not read again'


def test_limits_in_bytes(folder, wanted):
    sizes = {name: served(folder)[name].nbytes() for name in wanted}
    bank = served(folder, keep_bytes=sizes['lora'] + sizes['former'])
    check(bank, list(wanted), wanted)
    assert 0 < bank._store.bytes <= sizes['lora'] + sizes['former']
    assert bank._store.bytes == sum(sizes[name] for name in bank.in_memory)
    bank = served(folder, keep_bytes=1)
    check(bank, list(wanted), wanted)
    assert not bank.in_memory, 'one that is larger than the limit is there for its batch alone'


def test_what_was_changed_is_not_lost(folder, wanted, caplog):
    """Whatever changed it: a step of training on methods or tuned parameters, or a file."""
    for name in ('lora', 'tuned'):
        bank = served(folder, keep=1)
        bank.switch(name)
        bank.model.train()
        optimizer = torch.optim.SGD([p for p in bank.model.parameters() if p.requires_grad], 0.1)
        bank.model(images(), mode='tensor').square().mean().backward()
        optimizer.step()
        bank.model.eval()
        trained = bank.model(images(), mode='tensor').detach().clone()
        assert not torch.equal(trained, wanted[name])
        bank.switch(None)
        for other in ('wide', 'former', 'apt'):
            bank[other]
        with bank.using(name) as model:
            assert torch.equal(model(images(), mode='tensor'), trained), name
        assert name in bank.names and name not in bank.in_memory
    bank = served(folder, keep=1)
    with bank.using('tuned'):
        pass
    bank['apt']
    assert bank.in_memory == ['apt'], 'using one changes nothing'
    bank.hot_swap('lora', str(folder / 'files/lora.safetensors'))
    bank['apt']
    assert 'lora' in bank._adapters and bank.in_memory == ['apt']


def test_a_thousand_adapters(folder, monkeypatch, tmp_path):
    """1,000 adapters on one base, ten in memory: right scores, bounded memory, in seconds."""
    monkeypatch.setattr('os.fsync', lambda handle: None)
    tensors, header = adapter_file.load(folder / 'files/lora.safetensors')
    header = {k: v for k, v in header.items() if k not in ('format', 'mmpetl_version', 'checksum')}
    generator = torch.Generator().manual_seed(0)
    biases = torch.randn(1000, 3, generator=generator)
    (tmp_path / 'thousand').mkdir()
    for n in range(1000):
        adapter_file.save(tmp_path / 'thousand' / f'a{n}.safetensors', dict(tensors, **{'head.fc.bias': biases[n]}), header)
    bank = AdapterBank(plain(folder))
    assert len(bank.serve(str(tmp_path / 'thousand'), keep=10)) == 1000
    with torch.no_grad():
        bank.model.eval()
        with bank.using('a0') as model:
            first = model(images(), mode='tensor')[0] - biases[0]
    started, most = time.process_time(), 0
    for n in range(0, 1000, 20):
        names = [f'a{k}' for k in range(n, n + 20)]
        bank.prefetch([f'a{k}' for k in range(n + 20, min(1000, n + 40))])
        for k, scores in zip(range(n, n + 20), predict(bank, names)):
            assert (scores - first - biases[k]).abs().max() < 1e-5
        most = max(most, len(bank._adapters))
        assert len(bank.in_memory) <= 10
    assert most <= 20 and time.process_time() - started < 60
    alive = sum(isinstance(o, mmpetl.adapters.adapter.Adapter) for o in gc.get_objects())
    assert alive < 100, 'no more adapters live than the limits and what is read ahead'


# -- reading ahead, threads -------------------------------------------------------------------------------------------


def test_prefetch(folder, wanted, monkeypatch):
    bank, threads = served(folder), []
    read = store.read_adapter
    monkeypatch.setattr(store, 'read_adapter', lambda *a, **k: threads.append(threading.current_thread()) or read(*a, **k))
    bank.prefetch(['lora', 'deep', 'lora'])
    check(bank, ['lora', 'deep'], wanted)
    assert len(threads) == 2 and threading.main_thread() not in threads
    bank.prefetch(['lora'])
    bank._store.close()
    assert len(threads) == 2, 'what is in memory is not read again'
    with pytest.raises(ValueError, match="did you mean 'lora'"):
        bank.prefetch(['lroa'])
    bank = served(folder, keep=2)
    bank.prefetch(list(wanted))
    assert len(bank._store._ahead) <= 2
    check(bank, list(wanted), wanted)


def test_many_threads(folder, wanted):
    """Threads that ask for adapters of their own, with far fewer in memory than asked for, get their own scores."""
    bank, names, wrong = served(folder, keep=2), list(wanted), []

    def work(start):
        try:
            for k in range(4):
                chosen = [names[(start + k + j) % len(names)] for j in range(3)]
                bank.prefetch(chosen)
                check(bank, chosen, wanted)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n, )) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(t.is_alive() for t in threads)
    assert len(bank.in_memory) <= 2


# -- at once ----------------------------------------------------------------------------------------------------------


class Count(TorchDispatchMode):
    """Operations that compute something."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition('::')[2].partition('.')[0]
        if name not in ('view', 't', 'transpose', 'expand', 'slice', 'select', 'permute', '_unsafe_view', 'detach', 'alias',
                        'unsqueeze', 'as_strided', 'split', 'unbind', 'squeeze', 'reshape', 'split_with_sizes'):
            self.number += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('name', BACKBONE)
def test_operations_do_not_grow_with_the_adapters(name):
    """LoRAs of all samples act at once: as many operations for eight adapters as for two."""
    model = BACKBONE[name].build_upstream()
    bank, counts = AdapterBank(model), {}
    for n in range(8):
        bank.add(str(n), [dict(type='LoRA', rank=2, ops='qv', alpha=n + 1.)])
        perturb(model.petl, 0.2, n)
    model.eval()
    x = BACKBONE[name].inputs(8)
    with torch.no_grad():
        for several in (2, 8):
            ids = [str(n % several) for n in range(8)]
            passes = []
            with bank.mixed(ids) as backbone:
                for _ in range(3):  # indices of windows are made once per shape, and anew when other tests filled their store
                    with Count() as count:
                        got = features(backbone(x))
                    passes.append(count.number)
            counts[several] = min(passes)
            for row, name in enumerate(ids):
                with bank.using(name) as alone:
                    assert (features(alone(x[row:row + 1])) - got[row:row + 1]).abs().max() < 1e-5
        with bank.using(None), Count() as count:
            model(x)
    assert counts[8] <= counts[2], counts
    # Two layers with q and v: stack and choose the factors, scale them, two products; the base makes q, k, v apart.
    assert name != 'vit' or counts[2] <= count.number + 4 * 10 + 2 * 6, (counts, count.number)


@pytest.mark.parametrize('name', [*BACKBONE, *(b.name for b in FOREIGN if b.name in ('timm_vit', 'hf_vit', 'timm_eva'))])
def test_lora_at_once_on_every_backbone(name):
    """Against each adapter alone; ranks, scales, initialisations and samples without an adapter mixed."""
    backbone = {**BACKBONE, **{b.name: b for b in FOREIGN}}[name]
    torch.manual_seed(0)
    model = backbone.build_upstream()
    bank = AdapterBank(model)
    for seed, cfg in enumerate((dict(rank=2), dict(rank=3, alpha=7.), dict(rank=2, init='pissa'), dict(rank=2, ops='q,proj,fc1'))):
        bank.add(str(seed), [dict(dict(type='LoRA', ops='q,k,v,fc2'), **cfg)])
        perturb(model.petl, 0.2, seed)
    model.eval()
    for ids in (['0', '1', '2', '0'], ['0', None, '2', '1'], ['3', '0', None]):
        x = backbone.inputs(len(ids))
        with torch.no_grad():
            with bank.mixed(ids) as mixed:
                got = features(mixed(x)).clone()
            for i, key in enumerate(ids):
                with bank.using(key) as alone:
                    one = features(alone(x[i:i + 1]))
                assert (got[i:i + 1] - one).abs().max() <= 2e-5 * max(1, one.abs().max()), key


def test_autocast_at_once():
    model = VIT.build_upstream()
    bank = AdapterBank(model)
    for n in range(2):
        bank.add(str(n), LORA)
        perturb(model.petl, 0.2, n)
    model.eval()
    x = VIT.inputs(2)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        with bank.mixed(['0', '1']) as mixed:
            got = features(mixed(x)).float()
        for row in range(2):
            with bank.using(str(row)) as alone:
                assert (features(alone(x[row:row + 1])).float() - got[row:row + 1]).abs().max() < 0.05 * got.abs().max()


# -- what is refused --------------------------------------------------------------------------------------------------


def test_bad_files_are_said_when_they_are_used(folder, wanted, tmp_path):
    bank = served(folder, keep=2)
    data = bytearray((folder / 'files/lora.safetensors').read_bytes())
    data[-3] ^= 1
    (tmp_path / 'flipped.safetensors').write_bytes(bytes(data))
    (tmp_path / 'page.safetensors').write_bytes(b'<html>')
    other = build_model(read_config(str(folder / 'lora.py')))
    perturb(other, 0.1, 5)
    mmpetl.save_adapter(other, str(tmp_path / 'other.safetensors'))
    header = adapter_file.load(folder / 'files/lora.safetensors')
    adapter_file.save(tmp_path / 'short.safetensors', {k: v for k, v in header[0].items() if 'layers.1' not in k and '.1.' not in k},
                      {k: v for k, v in header[1].items() if k not in ('format', 'mmpetl_version', 'checksum', 'counts')})
    bank = AdapterBank(plain(folder))
    bank.serve({**{p.stem: str(p) for p in tmp_path.iterdir()}, 'lora': folder / 'files/lora.safetensors'})
    for prefetch in (False, True):
        for name, said in dict(flipped='altered or damaged', page='page.safetensors', other='wrong base', short='issing').items():
            if prefetch:
                bank.prefetch([name])
            with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
                predict(bank, ['lora', name])
            assert '\n' not in str(error.value) and name in str(error.value)
            check(bank, ['lora'], wanted)
    assert bank.in_memory == ['lora']


def test_bad_calls(folder, tmp_path):
    files = str(folder / 'files')
    for call, said in {
            lambda b: b.serve(str(tmp_path / 'none')): 'is no folder', lambda b: b.serve(str(tmp_path)): 'holds no',
            lambda b: b.serve({'a': str(tmp_path / 'x.safetensors')}): 'does not exist', lambda b: b.serve(files, 0): 'keep=0',
            lambda b: b.serve(files, keep_bytes=-1): 'keep_bytes=-1', lambda b: b.serve(files, True): 'keep=True',
            lambda b: b.serve({'../a': files}): 'adapter name', lambda b: b.predict(images(), ['lora']): '1 adapter_ids for 2',
            lambda b: b.predict(images()[:0], []): 'one name per input'}.items():
        bank = AdapterBank(plain(folder))
        bank.add('own', LORA)
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            call(bank)
        assert bank.names == ['own']
    bank = served(folder)
    for call, said in {lambda: bank.serve(files): 'already', lambda: bank.add('lora', LORA): 'already', lambda: copy.deepcopy(bank):
                       'not copied', lambda: bank.add_file('deep', files): 'already', lambda: bank['lroa']: "did you mean 'lora'"}.items():
        with pytest.raises(ValueError, match=said):
            call()
    bank.delete('lora')
    assert 'lora' not in bank and (folder / 'files/lora.safetensors').exists()
