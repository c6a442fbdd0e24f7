# SPDX-License-Identifier: Apache-2.0
"""Remedies of mmpetl.compat: each works, and each is still needed (those tests fail when upstream has mended the
cause)."""

import copy
import http.server
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from mmengine.runner import checkpoint as upstream
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import nn

from mmpetl import compat
from mmpetl.compat import environment, placeholders


def folder_of(package):
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])


# -- mmaction2 --------------------------------------------------------------------------------------------------------


def test_mmaction_needs_the_placeholders():
    mmaction = folder_of('mmaction')
    assert placeholders._lacks_drn(mmaction), 'the wheel ships localizers/drn again: drop its placeholder'
    assert 'apply_chunking_to_forward' in (
        mmaction / 'models/multimodal/vindlu/modeling_bert.py').read_text(), 'VindLU was mended: drop it'


def test_mmaction_imports():
    from mmaction.models import SwinTransformer3D
    assert issubclass(SwinTransformer3D, nn.Module)
    assert 'mmaction.models.localizers.drn' in compat.install_mmaction_stub()
    assert compat.install_mmaction_stub() == compat.install_mmaction_stub()


def test_complete_installations_are_left_alone(tmp_path, monkeypatch):
    localizers = tmp_path / 'mmaction/models/localizers'
    vindlu = tmp_path / 'mmaction/models/multimodal/vindlu'
    for folder in (localizers, vindlu, tmp_path / 'transformers'):
        folder.mkdir(parents=True)
    (localizers / '__init__.py').write_text('from .drn.drn import DRN')
    (vindlu / 'modeling_bert.py').write_text('from transformers.modeling_utils import apply_chunking_to_forward')
    (tmp_path / 'transformers/modeling_utils.py').write_text('')
    monkeypatch.setattr(placeholders, '_folder', lambda name: tmp_path / name)
    assert placeholders._lacks_drn(tmp_path / 'mmaction')
    assert placeholders._vindlu_breaks(tmp_path / 'mmaction')
    (localizers / 'drn').mkdir()
    (tmp_path / 'transformers/modeling_utils.py').write_text('def apply_chunking_to_forward(): ...')
    assert not placeholders._lacks_drn(tmp_path / 'mmaction')
    assert not placeholders._vindlu_breaks(tmp_path / 'mmaction')
    monkeypatch.setattr(placeholders, '_folder', lambda name: None)
    for name in [
            n for n in sys.modules
            if n.startswith(('mmaction.models.localizers.drn', 'mmaction.models.multimodal.vindlu'))
    ]:
        monkeypatch.delitem(sys.modules, name)
    assert compat.install_mmaction_stub() == []


def test_deepspeed_without_its_one_bit_optimizers(tmp_path, monkeypatch):
    """mmengine imports three names of a package that DeepSpeed 0.19 dropped."""
    upstream = folder_of('mmengine') / '_strategy/deepspeed.py'
    assert 'from deepspeed.runtime.fp16.onebit import' in upstream.read_text(
    ), 'mmengine was mended: drop the placeholder'
    name = 'deepspeed.runtime.fp16.onebit'
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(placeholders, '_folder', lambda package: None)
    assert not compat.install_deepspeed_stub()
    (tmp_path / 'runtime/fp16/onebit').mkdir(parents=True)
    monkeypatch.setattr(placeholders, '_folder', lambda package: tmp_path)
    assert not compat.install_deepspeed_stub()
    (tmp_path / 'runtime/fp16/onebit').rmdir()
    assert compat.install_deepspeed_stub()
    assert {'OnebitAdam', 'OnebitLamb', 'ZeroOneAdam'} <= set(vars(sys.modules.pop(name)))


# -- loading checkpoints ----------------------------------------------------------------------------------------------


class Payload:
    """Pickles into a command: whoever unpickles it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


@pytest.fixture
def runner_file(tmp_path):
    """What MMEngine's Runner saves: a message hub with history buffers beside the weights."""
    from mmengine.logging import MessageHub
    hub = MessageHub('compat test')
    hub.update_scalar('train/loss', 0.5)
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=dict(w=torch.arange(3.)), message_hub=hub.state_dict(), meta=dict(epoch=1)), path)
    return path


def test_upstream_cannot_reload_its_own_files(runner_file):
    with pytest.raises(Exception, match='weights_only'):
        upstream.load_from_local(str(runner_file), 'cpu')


def test_own_files_load(runner_file):
    loaded = upstream.CheckpointLoader.load_checkpoint(str(runner_file), 'cpu')
    assert torch.equal(loaded['state_dict']['w'], torch.arange(3.))
    assert loaded['message_hub']['log_scalars']['train/loss'].current() == 0.5


def test_payload_is_refused(tmp_path):
    torch.save(dict(state_dict=dict(w=torch.ones(1)), extra=Payload(tmp_path / 'ran')), tmp_path / 'evil.pth')
    with pytest.raises(ValueError, match=r'evil\.pth'):
        upstream.CheckpointLoader.load_checkpoint(str(tmp_path / 'evil.pth'))
    assert not (tmp_path / 'ran').exists()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on the loopback interface for the folder ``www``, and an empty download cache."""
    (tmp_path / 'www').mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))

    class Handler(http.server.SimpleHTTPRequestHandler):

        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / 'www'))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{httpd.server_port}', tmp_path / 'www'
        httpd.shutdown()
        thread.join()


def test_downloads_are_loaded_safely(server, tmp_path):
    url, www = server
    torch.save(dict(state_dict=dict(w=torch.ones(2)), extra=Payload(tmp_path / 'ran')), www / 'evil.pth')
    with pytest.raises(ValueError, match='refused'):
        upstream.CheckpointLoader.load_checkpoint(f'{url}/evil.pth')
    assert not (tmp_path / 'ran').exists()
    upstream.load_from_http(f'{url}/evil.pth')
    assert (tmp_path / 'ran').exists(), 'upstream no longer runs downloaded pickles: its loader may be kept'


def test_downloads_are_cached_and_checked(server):
    url, www = server
    torch.save(dict(w=torch.ones(2)), www / 'model-deadbeef.pth')
    with pytest.raises(RuntimeError, match='hash'):
        compat.load_from_http(f'{url}/model-deadbeef.pth')
    torch.save(dict(w=torch.ones(2)), www / 'plain.pth')
    assert torch.equal(compat.load_from_http(f'{url}/plain.pth')['state_dict']['w'], torch.ones(2))
    (www / 'plain.pth').unlink()
    assert torch.equal(compat.load_from_http(f'{url}/plain.pth')['state_dict']['w'], torch.ones(2))
    with pytest.raises(RuntimeError, match='cannot download .*absent.pth.* to work offline'):
        compat.load_from_http(f'{url}/absent.pth')


def test_zoo_names_go_the_same_way(server, monkeypatch):
    url, www = server
    torch.save(dict(state_dict={'backbone.w': torch.ones(2), 'head.w': torch.ones(1)}), www / 'zoo.pth')
    monkeypatch.setattr(upstream, 'get_mmcls_models', lambda: dict(net=f'{url}/zoo.pth'))
    assert list(upstream.CheckpointLoader.load_checkpoint('mmcls://net')['state_dict']) == ['w']
    with pytest.raises(KeyError, match='near names: net'):
        upstream.CheckpointLoader.load_checkpoint('mmcls://nett')


def test_storage_services_keep_their_loaders():
    assert upstream.CheckpointLoader._get_checkpoint_loader('s3://bucket/x.pth').__wrapped__ is upstream.load_from_ceph
    assert upstream.CheckpointLoader._get_checkpoint_loader('pavi://x').__wrapped__ is upstream.load_from_pavi
    assert upstream.CheckpointLoader._get_checkpoint_loader('x.pth') is compat.load_from_local


# -- several processes on the CPU -------------------------------------------------------------------------------------

CPU_PROGRAM = """
import mmengine.dist, torch
from mmengine.model import MMDistributedDataParallel
from mmpetl import compat
try:
    mmengine.dist.init_dist('pytorch', backend='gloo')
    print('init_dist works')
except (RuntimeError, AttributeError, AssertionError):
    print('init_dist fails')
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
assert compat.init_cpu_distributed() and compat.init_cpu_distributed()
assert torch.distributed.get_backend() == 'gloo'
try:
    MMDistributedDataParallel(torch.nn.Linear(2, 2), device_ids=[0])
    print('device_ids work')
except (ValueError, RuntimeError):
    print('device_ids fail')
wrapper = {k: v for k, v in compat.CPU_WRAPPER.items() if k != 'type'}
model = MMDistributedDataParallel(torch.nn.Linear(2, 2), **wrapper)
model(torch.ones(1, 2)).sum().backward()
assert model.module.weight.grad is not None
del model  # a DDP model that outlives its group sometimes aborts the process at exit
torch.distributed.destroy_process_group()
"""


def test_cpu_processes():
    with_rank = dict(os.environ, RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT='0',
                     CUDA_VISIBLE_DEVICES='', PYTHONPATH=str(Path(compat.__file__).parents[2]), OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', CPU_PROGRAM],
                          env=with_rank,
                          capture_output=True,
                          text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'init_dist fails' in done.stdout, 'mmengine starts CPU processes itself: drop init_cpu_distributed'
    assert 'device_ids fail' in done.stdout, 'DDP takes device_ids for CPU modules: drop CPU_WRAPPER'


def test_single_processes_are_left_alone(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    assert compat.init_cpu_distributed() is False
    assert not torch.distributed.is_initialized()


# -- gradient checkpointing -------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Frozen layer with a trainable low-rank branch."""

    def __init__(self):
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x, scale=1.):
        return torch.tanh(self.trunk(x) + scale * self.b(self.a(x)))


class Net(nn.Module):
    """Two blocks; the second is called with a keyword."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        return self.layers[1](self.layers[0](x), scale=2.).square().sum()


def gradients(net):
    net.zero_grad()
    net(torch.linspace(-1, 1, 8).view(2, 4)).backward()
    return {n: p.grad for n, p in net.named_parameters() if p.requires_grad}


@pytest.mark.filterwarnings('ignore:.*use_reentrant', 'ignore:None of the inputs have requires_grad')
def test_reentrant_checkpointing_still_loses_gradients():
    net = nn.Sequential(Block())
    turn_on_activation_checkpointing(net, '0')
    loss = net(torch.ones(2, 4)).sum()
    assert not loss.requires_grad, 'mmengine checkpoints without reentry: drop nonreentrant_checkpointing'


@pytest.mark.parametrize('names', ['layers.*', ['layers.0', 'layers.1'], ['layers.1', 'layers.*']])
def test_checkpointing_keeps_gradients(names):
    torch.manual_seed(0)
    net = Net()
    expected = gradients(net)
    assert sorted(compat.nonreentrant_checkpointing(net, names)) == ['layers.0', 'layers.1']
    found = gradients(net)
    assert found.keys() == expected.keys()
    for key in expected:
        assert torch.equal(found[key], expected[key]), key
    assert type(net.layers[0]).__name__ == 'Block'
    assert isinstance(net.layers[0], Block)


def test_checkpointing_saves_memory_and_is_idempotent():
    net = Net()

    def saved(run):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            run(torch.ones(2, 4, requires_grad=True))
        return sum(sizes)

    before = saved(net)
    compat.nonreentrant_checkpointing(net, 'layers.*')
    once = saved(net)
    compat.nonreentrant_checkpointing(net, 'layers.*')
    assert saved(net) == once < before
    assert type(net.layers[0]).__mro__.count(Block) == 1
    assert type(net.layers[0]).__bases__ == (Block, )


def test_copies_checkpoint_themselves():
    """A copy (as of an exponential moving average) must use its own weights; mmengine's switch makes it use the
    original's."""
    net = Net()
    compat.nonreentrant_checkpointing(net, 'layers.*')
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert net(torch.ones(1, 4)) == 0
    assert twin(torch.ones(1, 4)) != 0


def test_unknown_submodule():
    with pytest.raises(ValueError, match=r"no submodule is called 'layer\.0'; near names: layers\.0"):
        compat.nonreentrant_checkpointing(Net(), 'layer.0')


# -- environment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('installed, expected', [
    (dict(mmengine='0.10.7', setuptools='81.0.0'), None),
    (dict(mmengine='0.10.7', setuptools='84.0.0'), 'pkg_resources'),
    (dict(mmengine='0.11.0', setuptools='84.0.0'), None),
    (dict({
        'mmengine': '0.10.7',
        'onedl-mmengine': '0.10.12'
    }, setuptools='81.0.0'), 'mmengine and onedl-mmengine'),
    ({
        'opencv-python': '5.0.0.93',
        'opencv-contrib-python': '4.9.0.1'
    }, 'opencv-python==5.0.0.93 opencv-contrib-python==5.0.0.93'),
    ({
        'opencv-python': '4.9.0.80',
        'opencv-contrib-python': '4.13.0.92'
    }, 'opencv-python==4.13.0.92 opencv-contrib-python==4.13.0.92'),
    ({
        'opencv-python': '5.0.0.93',
        'opencv-contrib-python': '5.0.0.93'
    }, None),
])
def test_environment_warnings(monkeypatch, installed, expected):
    monkeypatch.setattr(environment, '_version', installed.get)
    found = compat.environment_warnings()
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1
        assert expected in found[0]


def test_mmcv_lite_gives_no_advice():
    folder = Path(importlib.util.find_spec('mmcv').origin).parent
    assert 'Fail to import ``MultiScaleDeformableAttention``' in (folder / 'cnn/bricks/transformer.py').read_text()
    code = 'import mmpetl, mmcv.cnn.bricks.transformer'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stderr == ''


def test_environment_warnings_are_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(environment, 'environment_warnings', lambda: ['trap'])
    monkeypatch.setattr(environment, '_warned', False)
    printed = []
    monkeypatch.setattr('mmengine.logging.print_log', lambda text, **_: printed.append(text))
    assert compat.warn_environment() == compat.warn_environment() == ['trap']
    assert printed == ['trap']


def test_mmengine_still_needs_pkg_resources():
    text = (folder_of('mmengine') / 'utils' / 'package_utils.py').read_text()
    assert 'pkg_resources' in text, 'mmengine no longer uses pkg_resources: drop the warning and the pin of setuptools'


def test_versions():
    compat.check_versions((3, 10, 0), '2.11.0')
    compat.check_versions((3, 13, 9), '2.14.1+cpu')
    for python in ((3, 9, 18), (3, 14, 0)):
        with pytest.raises(RuntimeError, match=r'needs Python 3\.10, 3\.11, 3\.12 or 3\.13, this is 3\.'):
            compat.check_versions(python, '2.12.1')
    for version in ('2.10.1', '2.15.0.dev1', '1.13'):
        with pytest.warns(UserWarning, match=r'torch >=2\.11,<2\.15'):
            compat.check_versions((3, 11), version)
