# SPDX-License-Identifier: Apache-2.0
"""Remedies for the pinned stack: what has to be put right before mmengine, mmpretrain and mmaction2 work together
safely.

Nothing of another package is patched. The remedies use mmengine's own extension points, plus placeholder modules for
what keeps the mmaction2 1.2.0 wheel and newer DeepSpeeds from being imported. Each has a test that fails as soon as
upstream no longer needs it.
"""

import difflib
import fnmatch
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import os
import sys
import types
import warnings
from functools import partial, wraps
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union
from urllib.parse import urlparse

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .names import plain_name

PYTHON_RANGE = ((3, 10), (3, 14))
TORCH_RANGE = ((2, 11), (2, 15))

_warned = False


# -- what keeps mmaction2 from being imported -------------------------------------------------------------------------


def _placeholder(name: str, **attributes: Any) -> types.ModuleType:
    """Put an empty package into ``sys.modules``, so that importing it succeeds."""
    module = types.ModuleType(name, 'Placeholder made by mmpetl.compat.')
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)  # who looks for a loader finds none
    module.__dict__.update(attributes, __mmpetl_stub__=True)
    sys.modules[name] = module
    return module


def _folder(package: str) -> Optional[Path]:
    """Folder of an installed top-level package, found without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _lacks_drn(mmaction: Path) -> bool:
    """Whether the wheel's ``localizers/__init__.py`` imports a folder ``drn`` that is not there."""
    folder = mmaction / 'models' / 'localizers'
    init = folder / '__init__.py'
    return init.is_file() and 'drn' in init.read_text(encoding='utf-8') and not (folder / 'drn').exists()


def _transformers_moved(user: Path) -> bool:
    """Whether a file of upstream's language models imports from ``transformers`` what transformers >= 5 no longer has
    there."""
    transformers = _folder('transformers')
    provider = transformers / 'modeling_utils.py' if transformers else None
    name = 'apply_chunking_to_forward'
    return bool(user.is_file() and name in user.read_text(encoding='utf-8')
                and provider and provider.is_file() and name not in provider.read_text(encoding='utf-8'))


def _vindlu_breaks(mmaction: Path) -> bool:
    """Whether mmaction2's VindLU cannot be imported."""
    return _transformers_moved(mmaction / 'models' / 'multimodal' / 'vindlu' / 'modeling_bert.py')


def leave_multimodal_out() -> bool:
    """Let mmpretrain 1.2.0 be imported where pycocotools and transformers >= 5 are both installed.

    With both it imports its language models, which fail with these transformers; with one of them it registers
    placeholders that name what is missing, as it does from here on.

    Returns:
        Whether the language models are left out for this reason.
    """
    from mmpretrain.utils import dependency
    mmpretrain = _folder('mmpretrain')
    breaks = bool(mmpretrain and _transformers_moved(
        mmpretrain / 'models' / 'multimodal' / 'blip' / 'language_model.py'))
    if breaks:
        dependency.WITH_MULTIMODAL = False
    return breaks


def install_mmaction_stub() -> List[str]:
    """Put placeholders where ``import mmaction.models`` of mmaction2 1.2.0 would fail.

    These are ``localizers.drn``, which the wheel lacks, and the video-language model VindLU where transformers >= 5 is
    installed. It must run before the first ``import mmaction.models``: a failed import leaves half-registered modules
    behind.

    Returns:
        Names of the placeholder packages that are in place; empty where mmaction2 is absent or needs none.
    """
    mmaction = _folder('mmaction')
    drn, vindlu = 'mmaction.models.localizers.drn', 'mmaction.models.multimodal.vindlu'
    if mmaction and drn not in sys.modules and _lacks_drn(mmaction):
        cls = type('DRN', (), {'__doc__': 'Placeholder: the mmaction2 wheel does not ship this localizer.'})
        _placeholder(drn, drn=_placeholder(f'{drn}.drn', DRN=cls))
    if mmaction and vindlu not in sys.modules and _vindlu_breaks(mmaction):
        _placeholder(vindlu, __all__=[])
    return [name for name in (drn, vindlu) if hasattr(sys.modules.get(name), '__mmpetl_stub__')]


def install_deepspeed_stub() -> bool:
    """Put placeholders where mmengine 0.10.7 imports the 1-bit optimizers, which DeepSpeed 0.19 no longer has.

    Returns:
        Whether the placeholder is in place; False where DeepSpeed is absent or needs none.
    """
    name, folder = 'deepspeed.runtime.fp16.onebit', _folder('deepspeed')
    if folder and name not in sys.modules and not list((folder / 'runtime' / 'fp16').glob('onebit*')):
        doc = {'__doc__': 'Placeholder: this DeepSpeed has no 1-bit optimizers.'}
        _placeholder(name, **{cls: type(cls, (), doc) for cls in ('OnebitAdam', 'OnebitLamb', 'ZeroOneAdam')})
    return hasattr(sys.modules.get(name), '__mmpetl_stub__')


def install_mmcv_ops_stub() -> bool:
    """Put a placeholder where mmsegmentation and mmdetection import the compiled operations that mmcv-lite lacks.

    ``mmcv.ops`` is imported by heads and backbones that need none of them as well. A model that does run such an
    operation ends with one line that names it.

    Returns:
        Whether the placeholder is in place; False where the full mmcv is installed.
    """
    name, folder = 'mmcv._ext', _folder('mmcv')
    if folder and name not in sys.modules and not list(folder.glob('_ext*')):

        def absent(operation: str) -> Any:
            if operation.startswith('__'):
                raise AttributeError(operation)

            def call(*args: Any, **kwargs: Any) -> None:
                raise RuntimeError(
                    f"mmcv-lite has no compiled operation '{operation}': install the full mmcv 2.1.0 for it")

            return call

        _placeholder(name, __getattr__=absent)
        bricks = sys.modules.get('mmcv.cnn.bricks.transformer')
        if bricks and not hasattr(bricks, 'MultiScaleDeformableAttention'):  # imported before, without operations
            from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
            vars(bricks)['MultiScaleDeformableAttention'] = MultiScaleDeformableAttention
    return hasattr(sys.modules.get(name), '__mmpetl_stub__')


# -- loading checkpoints without running code in them -----------------------------------------------------------------


def cut_config_texts(checkpoint: Dict[str, Any]) -> Dict[str, Any]:
    """Take the texts of configs out of a checkpoint, in place.

    A config is a program. MMEngine writes its text into checkpoints, ``Runner.resume`` executes ``meta['config']`` (to
    compare numbers of GPUs, which MMEngine itself never stores there), and its inferencers execute the text in
    ``message_hub`` or ``meta['cfg']`` where they are given no config. A run has its own config, so nothing is lost.

    Args:
        checkpoint: What a checkpoint file holds.

    Returns:
        The same object.
    """
    hub = checkpoint.get('message_hub')
    for place in (checkpoint.get('meta'), hub.get('runtime_info') if isinstance(hub, dict) else None):
        for key in ('config', 'cfg'):
            if isinstance(place, dict):
                place.pop(key, None)
    return checkpoint


def load_from_local(filename: str, map_location: Any = None) -> Dict[str, Any]:
    """Loader for mmengine's ``CheckpointLoader``: read a local file by :func:`mmpetl.weights.io.load_file`, without the
    texts of configs.

    Args:
        filename: Path; ``~`` is expanded.
        map_location: As for ``torch.load``; None means the CPU, from where ``load_state_dict`` copies to the right
            device.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, foreign, or would need code to be run.
    """
    from .weights.io import load_file  # here, since importing mmpetl must stay cheap
    return cut_config_texts(load_file(filename, 'cpu' if map_location is None else map_location))


def load_from_http(filename: str, map_location: Any = None, model_dir: Optional[str] = None) -> Dict[str, Any]:
    """Loader for ``http(s)://``: download to torch's cache (once per machine), then read it as :func:`load_from_local`
    does.

    Upstream's loader calls ``torch.hub``, which by default executes what is pickled in the file. The cache is the same.

    Args:
        filename: The address.
        map_location: See :func:`load_from_local`.
        model_dir: Cache folder; default ``<torch hub folder>/checkpoints``.

    Raises:
        RuntimeError: If it cannot be fetched, or its hash differs from the one in its name (``name-<sha256
            start>.pth``), which is compared at every load.
    """
    from mmengine.dist import barrier, is_main_process
    from mmengine.logging import print_log
    from torch.hub import HASH_REGEX, download_url_to_file, get_dir

    from .weights.atomic import part_folder
    from .weights.kinds import file_kind
    from .weights.reading import sha256_of
    folder = model_dir or os.path.join(get_dir(), 'checkpoints')
    name = plain_name(os.path.basename(urlparse(filename).path), f'{filename}: file')
    cached = os.path.join(folder, name)
    found = HASH_REGEX.search(name)
    start = found.group(1) if found else ''

    def fetch() -> None:
        if os.path.isfile(cached):
            if not start or sha256_of(cached).startswith(start):
                return
            print_log(f'{cached} is incomplete or altered (its SHA-256 differs): it is fetched again', 'current')
        os.makedirs(folder, exist_ok=True)
        try:
            with part_folder(folder, name) as part:
                download_url_to_file(filename, str(part / name), start or None, progress=sys.stderr.isatty())
                file_kind(str(part / name))  # a download that was cut off, or a page in place of the file
                os.replace(part / name, cached)
        except OSError as error:
            raise RuntimeError(
                f'cannot download {filename}: {error}. Put the file at {cached} to work offline') from error

    if is_main_process():
        fetch()
    barrier()
    fetch()  # the other machines of a multi-node run have their own cache
    return load_from_local(cached, map_location)


def load_from_zoo(filename: str, map_location: Any = None) -> Dict[str, Any]:
    """Loader for ``torchvision://``, ``open-mmlab://`` and ``mmcls://`` names: upstream's table of addresses, this
    module's reading.

    Raises:
        KeyError: If the zoo has no such name; near names are offered.
    """
    from mmengine.runner import checkpoint as upstream
    scheme, _, name = filename.partition('://')
    tables: Dict[str, Callable[[], Dict[str, str]]] = {
        'torchvision': upstream.get_torchvision_models,
        'modelzoo': upstream.get_torchvision_models,
        'open-mmlab': upstream.get_external_models,
        'openmmlab': upstream.get_external_models,
        'mmcls': upstream.get_mmcls_models
    }
    urls = tables[scheme]()
    if name not in urls:
        raise KeyError(
            f'{filename}: no such model; near names: {", ".join(difflib.get_close_matches(name, urls)) or "none"}')
    url = urls[name]
    if not url.startswith(('http://', 'https://')):  # an entry of the user's own table
        return load_from_local(os.path.join(upstream._get_mmengine_home(), url), map_location)
    loaded = load_from_http(url, map_location)
    if scheme == 'mmcls':
        states = loaded.get('state_dict', loaded)
        return {'state_dict': {k[len('backbone.'):]: v for k, v in states.items() if k.startswith('backbone.')}}
    return loaded


def _without_config_texts(loader: Callable[..., Dict[str, Any]]) -> Callable[..., Dict[str, Any]]:
    @wraps(loader)
    def load(filename: str, map_location: Any = None, **kwargs: Any) -> Dict[str, Any]:
        return cut_config_texts(loader(filename, map_location, **kwargs))

    return load


def install_safe_loader() -> None:
    """Make mmengine read checkpoints through this module: local files, ``http(s)`` and the zoo names that lead to them.

    mmengine 0.10.7 cannot reopen its own checkpoints with torch >= 2.6, and executes pickles that come from the
    network. ``s3://`` and the other storage services keep their loaders, which refuse pickled code already; the texts
    of configs are cut from what they load. Safe to call again.
    """
    from mmengine.runner import checkpoint as upstream
    from mmengine.runner.checkpoint import CheckpointLoader
    for prefixes, loader in ((('pavi://', ), upstream.load_from_pavi),
                             ((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), upstream.load_from_ceph)):
        CheckpointLoader.register_scheme(prefixes, _without_config_texts(loader), force=True)
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)
    CheckpointLoader.register_scheme(
        ('torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://'), load_from_zoo, force=True)


# -- several processes without a GPU ----------------------------------------------------------------------------------


def init_cpu_distributed(backend: str = 'gloo') -> bool:
    """Create the process group for ``torchrun`` on a machine without an accelerator, where mmengine would call
    ``torch.cuda``.

    Returns:
        Whether this process runs in a CPU process group. Then DDP needs ``device_ids=None`` (see :data:`CPU_WRAPPER`).
    """
    from torch import distributed
    if 'RANK' not in os.environ or torch.cuda.is_available() or not distributed.is_available():
        return False
    if not distributed.is_initialized():
        distributed.init_process_group(backend)
    return True


#: ``model_wrapper_cfg`` for CPU processes: mmengine's default passes the local rank as a device.
CPU_WRAPPER = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)


# -- gradient checkpointing that keeps the adapters' gradients --------------------------------------------------------


_classes: Dict[Any, type] = {}


def _checkpointed(cls: Any) -> type:
    """Subclass of a module class whose forward is recomputed in the backward pass; one per class."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = partial(cls.forward, self, **kwargs)
        return checkpoint(run, *args, use_reentrant=False) if torch.is_grad_enabled() else run(*args)

    if cls not in _classes:
        members = {'forward': forward, '__module__': cls.__module__, '__doc__': cls.__doc__, '_checkpointed': True}
        _classes[cls] = type(cls.__name__, (cls,), members)
    return _classes[cls]


def nonreentrant_checkpointing(model: nn.Module, names: Union[str, Sequence[str]]) -> List[str]:
    """Recompute the activations of some submodules in the backward pass instead of keeping them.

    mmengine's own switch (``activation_checkpointing``) uses the reentrant form, which gives adapters over a frozen
    base no gradient at all, silently. This one specialises the instances' class, so that deep copies of the model
    checkpoint themselves.

    Args:
        model: The model, bare or in a wrapper such as DDP.
        names: Names of submodules, or glob patterns in which ``*`` stands for one part of a name:
            ``'backbone.layers.*'``.

    Returns:
        Names of the checkpointed submodules.

    Raises:
        ValueError: If a name matches no submodule.
    """
    from mmengine.model import is_model_wrapper
    if is_model_wrapper(model):
        model = model.module
    modules = dict(model.named_modules())
    chosen: List[str] = []
    for pattern in [names] if isinstance(names, str) else names:
        parts = pattern.split('.')
        found = [
            n for n in modules
            if n and len(n.split('.')) == len(parts) and all(map(fnmatch.fnmatchcase, n.split('.'), parts))
        ]
        if not found:
            near = difflib.get_close_matches(pattern, modules, n=3)
            hint = f'; near names: {", ".join(near)}' if near else '; name some, such as backbone.layers.*'
            raise ValueError(f'petl_checkpointing: no submodule is called {pattern!r}{hint}')
        chosen += [n for n in found if n not in chosen]
    for name in chosen:
        module = modules[name]
        if not getattr(module, '_checkpointed', False):
            module.__class__ = _checkpointed(type(module))
    return chosen


# -- the environment --------------------------------------------------------------------------------------------------


def _version(distribution: str) -> Optional[str]:
    """Version of an installed distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment_warnings() -> List[str]:
    """Known traps of the installed packages, one line each, with the command that mends it."""
    found = []
    engine, setuptools = _version('mmengine'), _version('setuptools')
    if engine == '0.10.7' and (setuptools is None or int(setuptools.split('.')[0]) >= 82):
        found.append(
            f"mmengine 0.10.7 needs pkg_resources, which setuptools {setuptools} lacks: 'scope::' configs and hub "
            f"fail. "
            f"Run: pip install 'setuptools>=77.0.3,<82'")
    engines = [d for d in ('mmengine', 'mmengine-lite', 'onedl-mmengine') if _version(d)]
    if len(engines) > 1:
        found.append(f'{" and ".join(engines)} install the same package. '
                     f'Run: pip uninstall {" ".join(engines)}; pip install mmengine==0.10.7')
    names = ('opencv-python', 'opencv-contrib-python', 'opencv-python-headless', 'opencv-contrib-python-headless')
    opencv = {d: v for d in names for v in [_version(d)] if v}
    if len(set(opencv.values())) > 1:
        listed = ', '.join(f'{d} {v}' for d, v in opencv.items())
        found.append(f'OpenCV packages of different versions overwrite each other ({listed}). '
                     f'Run: pip install {" ".join(f"{d}=={max(opencv.values())}" for d in opencv)}')
    return found


def warn_environment() -> List[str]:
    """Log :func:`environment_warnings` once per process at INFO.

    Returns:
        The warnings, also when they were logged before.
    """
    global _warned
    found = environment_warnings()
    if not _warned:
        from mmengine.logging import print_log
        for line in found:
            print_log(line, logger='current', level=logging.INFO)
        _warned = True
    return found


def check_versions(python: Optional[Tuple[int, ...]] = None, torch_version: Optional[str] = None) -> None:
    """Refuse an unsupported Python, warn about an untested torch.

    Args:
        python: (major, minor, ...) of the interpreter; default the running one.
        torch_version: Version of torch, for example '2.12.1+cpu'; default the imported one.

    Raises:
        RuntimeError: If Python is outside 3.10-3.13.
    """
    found = (python or sys.version_info[:2])[:2]
    if not PYTHON_RANGE[0] <= found < PYTHON_RANGE[1]:
        raise RuntimeError(
            f'mmpetl needs Python 3.10, 3.11, 3.12 or 3.13, this is {found[0]}.{found[1]}: make an environment '
            f'with one of them'
        )
    text = torch_version or torch.__version__
    major, minor = (int(part) for part in text.split('+')[0].split('.')[:2])
    if not TORCH_RANGE[0] <= (major, minor) < TORCH_RANGE[1]:
        warnings.warn(
            f'mmpetl is tested with torch >=2.11,<2.15, this is {text}: install one of them if something fails',
            stacklevel=2)
