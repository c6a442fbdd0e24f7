# SPDX-License-Identifier: Apache-2.0
"""Adapters on disk, of which those that were used last stay in memory."""

import copy
import json
import logging
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..backbones.attach import build_methods, check_methods, config_of
from ..names import plain_name
from ..sites import Method
from ..weights import adapter_file
from ..weights.belongs import check_belongs
from ..weights.hub import is_hub, is_peft, local_path
from .adapter import Adapter
from .files import methods_of, renamed, resize_linears
from .peft_folder import open_peft

Paths = Union[str, 'os.PathLike[str]', Mapping[str, Union[str, 'os.PathLike[str]']]]
Stamp = Tuple[int, ...]


class Place:
    """What reading an adapter needs to know of the model; made once, and read by any thread.

    Args:
        model: The model.
        backbone: Its attached backbone.
        prefix: Its prefix in the model's names.
        modules: What the model holds besides it; copied for every adapter.
        facts: What :func:`mmpetl.tuning.model_facts` says of the model without an adapter.
        part_facts: Type and options of a module, as those facts have them.
        force: Take adapters in spite of differences that change neither names nor shapes; each is logged.
    """

    def __init__(self, model: nn.Module, backbone: nn.Module, prefix: str, modules: Mapping[str, nn.Module],
                 facts: Mapping[str, Any], part_facts: Callable[[nn.Module], Dict[str, Any]],
                 force: bool = False) -> None:
        self.model, self.force = model, force
        self.backbone, self.prefix, self.modules, self.part_facts = backbone, prefix, dict(modules), part_facts
        # Methods and tuned parameters are those of the file.
        self.facts = {k: v for k, v in facts.items() if k not in ('methods', 'defaults', 'costs_only', 'tune', 'parts')}
        self.specs = [block.spec for block in backbone.petl.blocks]
        self._checked: Dict[str, List[Dict[str, Any]]] = {}
        self.shapes = {n: p.shape for n, p in backbone.named_parameters() if not n.startswith('petl.')}

    def checked(self, path: str, header: Mapping[str, Any]) -> List[Dict[str, Any]]:
        """The method configs of a file that may be built; of a thousand alike one is looked at."""
        key = json.dumps([header['methods'], header['counts']['stored']])
        if key not in self._checked:
            if len(self._checked) >= 100:
                self._checked = {}
            self._checked[key] = methods_of(path, header, self.specs)
        return self._checked.get(key) or methods_of(path, header, self.specs)

    def parts_for(self, given: Mapping[str, Tensor]) -> Dict[str, nn.Module]:
        """Copies of what the model holds besides its backbone, for tensors (...) by key of the model: their number of
        classes may be another."""
        modules = {key: copy.deepcopy(m) for key, m in self.modules.items()}
        for key, module in modules.items():
            resize_linears(module, {k[len(key) + 1:]: t for k, t in given.items() if k.startswith(f'{key}.')})
        return modules


def read_adapter(place: Place, path: str, aside: bool = False) -> Optional[Adapter]:
    """An adapter out of a file or a folder of peft; nothing of the model is changed.

    Args:
        place: The model that it is for.
        path: Adapter file, or folder of peft.
        aside: Another thread has its turn with the model.

    Returns:
        The adapter on the CPU. Aside None where the model must be looked at or random numbers are drawn: for folders of
        peft, and methods that hold more than the file does.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not belong on the model, in one line. The base's fingerprint is left to the caller.
    """
    if is_peft(path):
        return None if aside else _read_folder(place, path)
    tensors, header = adapter_file.load(path)
    # First: nothing that the header names is built before it is known to be a method.
    configs = place.checked(path, header)
    given = renamed(tensors, header, place.prefix)
    modules = place.parts_for(given)
    # The adapter of a bare backbone says nothing of heads.
    parts = {k: place.part_facts(m) for k, m in modules.items()} if header.get('head') else {}
    # A fingerprint is compared when the adapter enters the model, which other threads may be changing now.
    for line in check_belongs(header, dict(place.facts, parts=parts), path, place.force):
        print_log(line, 'current', logging.WARNING)
    methods = _built(configs, place, aside)
    if methods is None:
        return None
    left = dict(given)
    for prefix, module in [*((f'{place.prefix}petl.{k}.', m) for k, m in methods.items()),
                           *((f'{k}.', m) for k, m in modules.items())]:
        own = {k[len(prefix):]: left.pop(k) for k in list(left) if k.startswith(prefix)}
        _fill(module, own, path)
    tuned = {k[len(place.prefix):]: left.pop(k) for k in list(left)
             if left[k].shape == place.shapes.get(k[len(place.prefix):])}
    if left:
        key, value = next(iter(left.items()))
        raise ValueError(f'{path} holds {key} of shape {tuple(value.shape)}, for which the model has no place')
    return Adapter(methods, {n: config_of(c, methods[n]) for n, c in zip(methods, configs)}, tuple(header['tune']),
                   header['trunk'], tuned, modules, header)


def _built(configs: List[Dict[str, Any]], place: Place, aside: bool) -> Optional[Dict[str, Method]]:
    """Methods without values: all of them are in the file. Where they are not, they are built with their own, by the
    thread that has its turn, as these may be drawn."""
    try:
        # On the meta device: no time and no random numbers for values that the file brings.
        with torch.device('meta'):
            methods = build_methods(configs, place.specs)
    except (RuntimeError, NotImplementedError):
        methods = {}
    if not methods and configs or any(_holds_more(m) for m in methods.values()):
        if aside:
            return None
        methods = build_methods(configs, place.specs)
    check_methods(methods, place.backbone.petl.family, place.backbone)
    return methods


def _holds_more(module: nn.Module) -> bool:
    """Whether a module without values holds a tensor that is no state, and so is in no file."""
    state = {id(t) for t in module.state_dict(keep_vars=True).values()}
    held = [v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    return any(t.is_meta and id(t) not in state for t in (*module.parameters(), *module.buffers(), *held))


def _fill(module: nn.Module, own: Mapping[str, Tensor], path: str, strict: bool = True) -> None:
    """Give a module its tensors (...) by name, in the precision that it has."""
    types = {k: t.dtype for k, t in module.state_dict().items()}
    try:
        module.load_state_dict({k: t.to(types.get(k, t.dtype)) for k, t in own.items()}, strict=strict, assign=True)
    except RuntimeError as error:
        raise ValueError(f'{path}: {" ".join(str(error).split())}') from None


def _read_folder(place: Place, path: str) -> Adapter:
    """The adapter of a folder of peft."""
    opened = open_peft(place.model, path, any_classes=True)
    modules = place.parts_for(opened.head)
    methods = build_methods(opened.methods, place.specs)
    check_methods(methods, place.backbone.petl.family, place.backbone)
    # The safetensors library maps the file: what is kept is copied.
    for prefix, module, values in [*((f'petl.{k}.', m, opened.values) for k, m in methods.items()),
                                   *((f'{k}.', m, opened.head) for k, m in modules.items())]:
        own = {k[len(prefix):]: t.clone() for k, t in values.items() if k.startswith(prefix)}
        buffers = dict(module.named_buffers())
        for key in own.keys() & buffers.keys() - module.state_dict().keys():
            buffers[key].copy_(own.pop(key))
        _fill(module, own, path, strict=False)
    # A head inside the backbone stands among the parameters that an adapter changes.
    inside = {k[len(place.prefix):]: t for k, t in opened.head.items() if k[len(place.prefix):] in place.shapes}
    return Adapter(methods, {n: config_of(c, methods[n]) for n, c in zip(methods, opened.methods)}, tuple(opened.tuned),
                   'eval', {k: t.clone() for k, t in {**opened.tuned, **inside}.items()}, modules, opened.config)


class AdapterStore:
    """Named adapters on disk, of which those that were used last stay in memory.

    Reading may go on in a thread of its own; all else is done by the thread that has its turn with the model.

    Args:
        place: The model that they are for.
        paths: Folder, whose ``*.safetensors`` are named by their stems, or name -> file or ``hf://`` address.
        keep: Most adapters in memory.
        keep_bytes: Most bytes of adapters in memory; None: no limit.

    Raises:
        FileNotFoundError: If a file or folder does not exist.
        ValueError: If a name or a limit is unfit.
    """

    def __init__(self, place: Place, paths: Paths, keep: int = 100, keep_bytes: Optional[int] = None) -> None:
        for key, value in dict(keep=keep, keep_bytes=1 if keep_bytes is None else keep_bytes).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'{key}={value!r:.40} must be a whole number from 1')
        self.place, self.keep, self.keep_bytes = place, keep, keep_bytes
        self.paths = paths_of(paths)
        #: Adapters in memory, the one used last at the end, with their bytes and how often their tensors were written.
        self.loaded: 'OrderedDict[str, Tuple[int, Stamp]]' = OrderedDict()
        self.bytes = self.reads = 0
        self._ahead: 'OrderedDict[str, Future[Optional[Adapter]]]' = OrderedDict()
        self._lock = threading.Lock()
        self._reader: Optional[ThreadPoolExecutor] = None

    def __deepcopy__(self, memo: Any) -> 'AdapterStore':
        raise ValueError('a bank that serves adapters from disk is not copied: make a bank of the copied model')

    def read(self, name: str) -> Optional[Adapter]:
        """What :func:`read_adapter` gives for a name; what :meth:`ahead` has begun is waited for."""
        with self._lock:
            begun = self._ahead.pop(name, None)
            self.reads += 1
        return begun.result() if begun is not None else self._read(self.paths[name])

    def _read(self, path: str) -> Optional[Adapter]:
        return read_adapter(self.place, local_path(path), aside=True)

    def ahead(self, names: Iterable[str]) -> None:
        """Begin to read adapters in a thread; at most ``keep`` wait to be used, the oldest are given up."""
        with self._lock:
            if self._reader is None:
                self._reader = ThreadPoolExecutor(1, thread_name_prefix='mmpetl-adapters')
            for name in dict.fromkeys(names):
                if name in self.loaded or name in self._ahead:
                    continue
                self._ahead[name] = self._reader.submit(self._read, self.paths[name])
                while len(self._ahead) > self.keep:
                    self._ahead.popitem(last=False)[1].cancel()

    def entered(self, name: str, adapter: Adapter) -> None:
        """Note that an adapter is in memory, used last."""
        size = adapter.nbytes()
        self.loaded[name] = size, stamp_of(adapter)
        self.bytes += size

    def used(self, name: str) -> None:
        """Note that an adapter was used."""
        if name in self.loaded:
            self.loaded.move_to_end(name)

    def left(self, name: str) -> None:
        """Note that an adapter is no longer in memory."""
        if name in self.loaded:
            self.bytes -= self.loaded.pop(name)[0]

    def too_many(self, in_use: Sequence[Optional[str]]) -> List[str]:
        """Adapters to let go, the ones that were not used for longest first; never one in use."""
        gone: List[str] = []
        count, held = len(self.loaded), self.bytes
        for name, (size, _) in self.loaded.items():
            if count <= self.keep and (self.keep_bytes is None or held <= self.keep_bytes):
                break
            if name not in in_use:
                gone.append(name)
                count, held = count - 1, held - size
        return gone

    def is_changed(self, name: str, adapter: Adapter) -> bool:
        """Whether somebody has written into an adapter since it was read."""
        return self.loaded[name][1] != stamp_of(adapter)

    def close(self) -> None:
        """End the reading thread."""
        with self._lock:
            if self._reader is not None:
                self._reader.shutdown(wait=True, cancel_futures=True)
                self._reader = None
            self._ahead.clear()


def stamp_of(adapter: Adapter) -> Stamp:
    """How often each tensor of an adapter was written, which torch counts, and which tensors stand for the base's."""
    return (*(t._version for t in adapter.parts()), *map(id, adapter.tuned.values()))


def paths_of(paths: Paths) -> Dict[str, str]:
    """Name -> path of a folder or table of adapters.

    Raises:
        FileNotFoundError: If a file or folder does not exist.
        ValueError: If a name cannot name an adapter, or there is none.
    """
    if isinstance(paths, Mapping):
        found = {name: os.fspath(path) for name, path in paths.items()}
        missing = [p for p in found.values() if not is_hub(p) and not os.path.exists(os.path.expanduser(p))]
        if missing:
            raise FileNotFoundError(f'{missing[0]} does not exist: name adapter files')
    else:
        folder = local_path(paths)
        if not os.path.isdir(folder):
            raise FileNotFoundError(f'{folder} is no folder: name a folder of adapter files, or a table of them')
        found = {name.removesuffix('.safetensors'): os.path.join(folder, name) for name in sorted(os.listdir(folder))
                 if name.endswith('.safetensors') and not name.startswith('.')}
        if not found:
            raise ValueError(f'{folder} holds no *.safetensors')
    for name in found:
        plain_name(name, 'adapter name')
    return found

