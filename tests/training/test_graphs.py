# SPDX-License-Identifier: Apache-2.0
"""``cuda_graph=True``: when a backbone is captured, replayed or run as it is, with a stand-in for torch's graphs; the
graphs themselves need a GPU, and no test here says that they work there."""

import copy
import types

import pytest
import torch
from cases import BACKBONE, features
from mmengine.config import Config

from mmpetl.training import graphs
from mmpetl.training.graphs import WARM_UP, GraphedForward, graph_backbone_of, why_not

VIT = BACKBONE['vit']


class Fake:
    """Captures by keeping the module; counts replays, and refuses inputs of another shape as a graph would."""

    def __init__(self, error=None):
        self.error, self.captures, self.replays, self.cached = error, 0, 0, None

    def __call__(self, module, args, allow_unused_input):
        self.captures += 1
        self.cached = torch.is_autocast_cache_enabled()
        if self.error:
            raise self.error
        with torch.enable_grad():
            module(*args)

        def replay(x):
            assert x.shape == args[0].shape
            self.replays += 1
            return module.backbone.forward._plain(x)

        return replay


@pytest.fixture
def model():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    built = VIT.build([dict(type='LoRA', rank=2)])
    built.train()
    return built


def graphed(model, error=None):
    fake, lines = Fake(error), []
    model.forward = GraphedForward(model, lines.append, fake)
    return fake, lines


def test_it_is_captured_after_the_warm_up_and_then_replayed(model):
    x = VIT.inputs()
    wanted = features(model(x))
    fake, lines = graphed(model)
    for _ in range(WARM_UP):
        model(x)
    assert (fake.captures, fake.replays) == (0, 0)
    found = [features(model(x)).detach() for _ in range(3)]
    assert (fake.captures, fake.replays) == (1, 3) and len(lines) == 1 and 'is captured for inputs of shape (2, 3' in lines[0]
    assert all(torch.equal(each, wanted) for each in found)
    features(model(x)).sum().backward()
    assert any(p.grad is not None for p in model.petl.parameters())


def test_other_shapes_evaluation_and_passes_without_gradients_run_as_they_are(model):
    fake, _ = graphed(model)
    for _ in range(WARM_UP + 1):
        model(VIT.inputs())
    assert fake.replays == 1
    model(VIT.inputs(3))  # the last batch of an epoch
    with torch.no_grad():
        model(VIT.inputs())
    model.eval()
    model(VIT.inputs())
    assert fake.replays == 1
    model.train()
    with torch.autocast('cpu', torch.bfloat16):
        model(VIT.inputs())
    assert fake.replays == 1, 'a graph in fp32 must not stand in for one in bf16'
    model(VIT.inputs())
    assert (fake.captures, fake.replays) == (1, 2)


def test_shapes_that_change_are_never_captured(model):
    fake, _ = graphed(model)
    for number in range(4 * WARM_UP):
        model(VIT.inputs(1 + number % 2))
    assert fake.captures == 0


def test_a_capture_that_fails_costs_one_line(model):
    fake, lines = graphed(model, RuntimeError('operation not permitted when stream is capturing\nmore'))
    for _ in range(WARM_UP + 3):
        model(VIT.inputs())
    assert fake.captures == 1
    assert lines == ['cuda_graph: the run goes on without, because the capture failed: operation not permitted when '
                     'stream is capturing']


def test_casts_are_not_cached_in_the_capture(model):
    fake, _ = graphed(model)
    with torch.autocast('cpu', torch.bfloat16):
        for _ in range(WARM_UP + 1):
            model(VIT.inputs())
    assert fake.captures == 1 and fake.cached is False


def test_a_second_pass_before_the_backward_pass_is_no_replay(model):
    """It would overwrite what the first one kept; a pass that no backward pass follows holds up nothing."""
    fake, _ = graphed(model)
    for _ in range(WARM_UP + 1):
        model(VIT.inputs())
    assert fake.replays == 1
    for replays in (2, 3):
        one, two = features(model(VIT.inputs())), features(model(VIT.inputs()))
        assert fake.replays == replays
        (one + two).sum().backward()
    one = features(model(VIT.inputs()))
    del one
    model(VIT.inputs())
    assert fake.replays == 5


def test_copies_capture_anew(model):
    """A graph reads the weights of the model that was captured."""
    fake, _ = graphed(model)
    for _ in range(WARM_UP + 1):
        model(VIT.inputs())
    assert fake.replays == 1
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.petl.parameters():
            parameter.normal_()
    ours, theirs = features(model(VIT.inputs())).detach(), features(twin(VIT.inputs())).detach()
    assert fake.replays == 2 and (ours - theirs).abs().max() > 1e-3
    assert twin.forward._graph is None and twin.forward._backbone is twin and model.forward._graph is not None
    for _ in range(WARM_UP):
        twin(VIT.inputs())
    assert twin.forward._graph is not None and model.forward._graph is not twin.forward._graph and fake.captures == 1


def test_the_stream_is_that_of_before(monkeypatch):
    """Torch's capture does not give it back where its end fails."""
    streams = ['main']

    class On:

        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            streams.append(self.stream)

        def __exit__(self, *error):
            streams[:] = streams[:1]

    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: streams[-1])
    monkeypatch.setattr(torch.cuda, 'stream', On)
    with pytest.raises(RuntimeError), graphs._keep_stream(torch.device('cuda', 0)):
        assert streams == ['main', 'main']
        On('side').__enter__()
        raise RuntimeError('the capture failed')
    assert streams == ['main']
    with graphs._keep_stream(torch.device('cpu')):
        pass


def runner_of(model, **cfg):
    lines = []
    logger = types.SimpleNamespace(info=lines.append, warning=lines.append)
    return types.SimpleNamespace(cfg=Config(dict(cfg)), model=model, logger=logger), lines


def test_without_a_gpu_a_line_says_so(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    runner, lines = runner_of(model, cuda_graph=True)
    graph_backbone_of(runner)
    assert lines == ['cuda_graph: the run goes on without, because there is no GPU'] and 'forward' not in vars(model)
    runner, lines = runner_of(model)
    graph_backbone_of(runner)
    assert not lines


@pytest.mark.parametrize('cfg,why', [
    (dict(launcher='pytorch'), 'several processes'), (dict(compile=True), 'compile=True captures in its own way'),
    (dict(optim_wrapper=dict(accumulative_counts=2)), 'overwrites the gradients'),
    (dict(custom_hooks=[dict(type='mmpetl.FeatureCacheHook')]), 'the feature cache'), ({}, None)])
def test_what_keeps_a_run_from_graphs(model, monkeypatch, cfg, why):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    runner, _ = runner_of(model, cuda_graph=True, **cfg)
    found = why_not(runner)
    assert found is None if why is None else why in found
    if why is None:
        graph_backbone_of(runner)
        assert isinstance(model.forward, graphs.GraphedForward)
        twin = copy.deepcopy(model)  # as averages of weights do
        assert twin.forward._backbone is twin and twin.forward._plain.__self__ is twin
