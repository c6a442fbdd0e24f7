# SPDX-License-Identifier: Apache-2.0
"""Loading checkpoints through MMEngine without running code in them."""

import difflib
import os
import sys
from functools import wraps
from typing import Any, Callable, Dict, Optional
from urllib.parse import urlparse

from ..names import plain_name


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
    from ..weights.io import load_file  # here, since importing mmpetl must stay cheap
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

    from ..weights.atomic import part_folder
    from ..weights.kinds import file_kind
    from ..weights.reading import sha256_of
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


def load_from_hub(filename: str, map_location: Any = None) -> Dict[str, Any]:
    """Loader for ``hf://user/repo[@revision][/file]``: an adapter file of the Hugging Face hub, by
    :func:`mmpetl.weights.hub.local_path`.

    Raises:
        ValueError: If it is a folder of peft or no adapter file.
    """
    from ..weights.adapter_file import is_adapter
    from ..weights.hub import is_peft, local_path
    path = local_path(filename)
    if is_peft(path) or not is_adapter(path):
        what = 'a folder of peft' if is_peft(path) else 'no adapter file'
        raise ValueError(f'{filename} is {what}: load_from takes adapter files of the hub; `mmpetl test`, `infer` and '
                         '`merge`, and mmpetl.load_adapter in Python, take folders of peft too')
    return load_from_local(path, map_location)


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
    CheckpointLoader.register_scheme('hf://', load_from_hub, force=True)
    CheckpointLoader.register_scheme(
        ('torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://'), load_from_zoo, force=True)
