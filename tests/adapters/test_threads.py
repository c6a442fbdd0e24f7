# SPDX-License-Identifier: Apache-2.0
"""Threads that share one model: right outputs, or a line at once; never another thread's adapter."""

import copy
import pickle
import threading

import pytest
import torch
from cases import BACKBONE, perturb

import mmpetl
from mmpetl.adapters.bank import AdapterBank

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WAIT = 20


def attached(seed=1):
    model = BACKBONE['vit'].build([dict(type='LoRA', rank=2)])
    model.eval()  # upstream's returns nothing
    perturb(model.petl, 0.3, seed)
    return model


@torch.no_grad()
def out(model):
    return model(X)[-1].clone()


def in_thread(work):
    """Run ``work`` in a thread; returns the thread and a list that gets its result or its error."""
    result = []

    def run():
        try:
            result.append(work())
        except Exception as error:  # handed to the test
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, result


def test_overlapping_disabled_contexts_wait():
    model = attached()
    with mmpetl.disabled(model):
        plain = out(model)
    adapted, entered, leave = out(model), threading.Event(), threading.Event()
    assert not torch.equal(plain, adapted)

    def first():
        with mmpetl.disabled(model):
            entered.set()
            assert leave.wait(WAIT)
            return out(model)

    def second():
        with mmpetl.disabled(model):
            return out(model)

    one, its = in_thread(first)
    assert entered.wait(WAIT)
    two, others = in_thread(second)
    leave.set()
    one.join(WAIT)
    two.join(WAIT)
    assert torch.equal(its[0], plain) and torch.equal(others[0], plain)
    assert torch.equal(out(model), adapted), 'the adapter is off for good'


def test_a_run_beside_a_context_is_refused_at_once():
    model = attached()
    with mmpetl.disabled(model):
        thread, result = in_thread(lambda: out(model))
        thread.join(WAIT)
        assert isinstance(result[0], RuntimeError) and 'another thread has switched or disabled' in str(result[0])
        assert '\n' not in str(result[0])
        out(model)
    thread, result = in_thread(lambda: out(model))
    thread.join(WAIT)
    assert torch.equal(result[0], out(model))


def test_a_context_beside_a_run_is_refused_at_once():
    model, inside, leave = attached(), threading.Event(), threading.Event()

    def stop(*_):
        inside.set()
        assert leave.wait(WAIT)

    expected = out(model)
    handle = model.layers[0].register_forward_hook(stop)
    thread, result = in_thread(lambda: out(model))
    assert inside.wait(WAIT)
    with pytest.raises(RuntimeError, match='another thread is running this model'), mmpetl.disabled(model):
        pass
    handle.remove()
    leave.set()
    thread.join(WAIT)
    assert torch.equal(result[0], expected)
    with mmpetl.disabled(model):  # the run is over
        assert not torch.equal(out(model), expected)


def test_an_error_in_a_run_does_not_count_as_running():
    model = attached()
    thread, result = in_thread(lambda: model(torch.zeros(1, 3, 7)))
    thread.join(WAIT)
    assert isinstance(result[0], Exception)
    with mmpetl.disabled(model):
        out(model)


def test_three_threads_use_one_bank():
    """180 calls of three threads: all right."""
    model = attached()
    bank = AdapterBank(model, 'a')
    for seed, name in ((2, 'b'), (3, 'c')):
        bank.add(name, [dict(type='LoRA', rank=2)], activate=False)
        for method in bank[name].methods.values():
            perturb(method, 0.3, seed)
    expected = {}
    for name in 'abc':
        with bank.using(name):
            expected[name] = out(model)
    assert not torch.equal(expected['a'], expected['b'])

    def work(name):
        right = 0
        for _ in range(60):
            with bank.using(name):
                right += torch.equal(out(model), expected[name])
        return right

    started = [in_thread(lambda name=name: work(name)) for name in 'abc']
    for thread, _ in started:
        thread.join(120)
    assert [result[0] for _, result in started] == [60, 60, 60]
    assert bank.active == 'a' and torch.equal(out(model), expected['a'])


def test_predict_of_two_threads():
    bank = AdapterBank(attached(), 'a')
    bank.add('b', [dict(type='AdaptFormer', mid_dims=4)], activate=False)
    perturb(bank['b'].methods['adaptformer'], 0.3, 4)
    expected = bank.predict(X, ['a', 'b'])
    started = [in_thread(lambda: [bank.predict(X, ['a', 'b']) for _ in range(10)]) for _ in range(2)]
    for thread, result in started:
        thread.join(60)
        for scores in result[0]:
            for score, wanted in zip(scores, expected):
                torch.testing.assert_close(score, wanted)


def test_copies_have_turns_of_their_own():
    model = attached()
    with mmpetl.disabled(model):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            thread, result = in_thread(lambda other=other: out(other))
            thread.join(WAIT)
            assert isinstance(result[0], torch.Tensor), result
