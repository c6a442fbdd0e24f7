# SPDX-License-Identifier: Apache-2.0
"""Many adapters on one frozen base.

An :class:`AdapterBank` holds named adapters of one model. One of them, or none, is active: its methods are the children
of ``backbone.petl``, its head is the model's head, and its tuned base parameters stand in the backbone. The others wait
outside the module tree, so the model's state dict holds the active adapter alone, under the same keys as without a
bank.
"""

import copy
import logging
from fnmatch import fnmatchcase
from typing import Any, Dict, Mapping, Optional, Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..backbones.attach import build_methods, check_methods, config_of
from ..sites import nearest
from ..tuning import adapter_state, model_facts, write_adapter
from ..weights import adapter_file
from ..weights.belongs import check_belongs
from ..weights.hub import local_path
from .adapter import Adapter
from .combine import COMBINATIONS, check_factors, combine_deltas, deltas_of
from .files import renamed
from .serving import Served
from .store import read_adapter
from .switched import in_turn


class AdapterBank(Served):
    """Named adapters of one model.

    Several threads may share a bank: ``using``, ``disabled``, ``mixed``, ``predict`` and all changes wait for each
    other, see :mod:`mmpetl.backbones.turn`.

    Args:
        model: A supported backbone, or a classifier or recognizer that holds one. What is attached to it becomes the
            first adapter. If that one changes base parameters, their original values are read from the file that
            the backbone's ``init_cfg`` names; where it names none, they are taken to be those in the backbone now.
        name: Name of that first adapter.
        with_cp: As for ``attach``, where nothing is attached yet.
    """

    # -- adding and removing ------------------------------------------------------------------------------------------

    @in_turn
    def add(self, name: str, petl: Sequence[Any] = (), tune: Sequence[str] = (), trunk: str = 'eval',
            head: Optional[Mapping[str, Any]] = None, activate: bool = True) -> None:
        """Add an adapter with fresh methods.

        Args:
            name: New name.
            petl: Method configs.
            tune: Patterns of base parameters that it changes.
            trunk: 'eval' or 'train', mode of the base while training.
            head: What replaces children of the model, configs or modules, such as
                ``dict(head=dict(type='LinearClsHead', ...))``; the others are copies of those that the model had when
                the bank was made.
            activate: Switch to it.

        Raises:
            ValueError: If the name is taken or unfit, or methods and backbone do not fit.
        """
        self._check_not_merged()
        self._check_name(name)
        self._add(name, petl, tune, trunk, head, activate)

    def _add(self, name: str, petl: Sequence[Any], tune: Sequence[str], trunk: str,
             head: Optional[Mapping[str, Any]], activate: bool = True) -> None:
        if trunk not in ('eval', 'train'):
            raise ValueError(f"trunk must be 'eval' or 'train', got {trunk!r}")
        if not isinstance(petl, (Mapping, Sequence)):
            raise ValueError(f"petl={petl!r:.80}: give a list of dicts such as dict(type='LoRA', rank=8)")
        petl = [petl] if isinstance(petl, Mapping) else list(petl)
        methods = build_methods(petl, [block.spec for block in self.backbone.petl.blocks])
        check_methods(methods, self.backbone.petl.family, self.backbone)
        configs = {n: config_of(c, methods[n]) for n, c in zip(methods, petl)}
        modules = {k: copy.deepcopy(m) for k, m in self._plain.modules.items()}
        for key, given in (head or {}).items():
            if key not in modules:
                here = nearest(key, modules) if modules else (
                    f'; {type(self.model).__name__} has nothing outside its backbone that could be replaced: leave it '
                    'out')
                raise ValueError(f'head: the model has no part {key!r}{here}')
            modules[key] = given if isinstance(given, nn.Module) else self._build(given)
        place = next(self.backbone.parameters())
        for module in (*methods.values(), *modules.values()):
            module.to(place.device)
        patterns = (tune, ) if isinstance(tune, str) else tuple(tune)
        for pattern in patterns:
            if not any(fnmatchcase(n, pattern) for n in self._base_names()):
                raise ValueError(f'tune={pattern!r} matches no parameter of {type(self.backbone).__name__}'
                                 + nearest(pattern, self._base_names()))
        self._adapters[name] = Adapter(methods, configs, patterns, trunk, modules=modules)
        before = self._active
        try:
            self.switch(name)
        except ValueError:
            del self._adapters[name]
            raise
        if not activate:
            self.switch(before)

    def _build(self, cfg: Mapping[str, Any]) -> nn.Module:
        from mmengine.registry import MODELS
        module: nn.Module = MODELS.build(dict(cfg))
        if hasattr(module, 'init_weights'):
            module.init_weights()
        return module

    @in_turn
    def add_file(self, name: str, path: str, activate: bool = True, force: bool = False) -> Dict[str, Any]:
        """Add the adapter of a file. Its head may have another number of classes than the model's.

        Args:
            name: New name.
            path: Adapter file, folder of peft, or ``hf://user/repo`` for one of these on the hub.
            activate: Switch to it.
            force: See :func:`mmpetl.load_adapter`.

        Returns:
            The header of the file; of a folder of peft its config.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it belongs on another base or does not fit; the bank is unchanged.
        """
        self._check_name(name)
        self._check_not_merged()
        path = local_path(path)
        adapter = read_adapter(self._place(force), path)
        assert adapter is not None and adapter.header is not None
        self._enter(name, path, adapter)
        if activate:
            self.switch(name)
        print_log(f'Adapter {name!r} of {path}', 'current')
        return adapter.header

    @in_turn
    def delete(self, name: str) -> None:
        """Forget an adapter; if it is the active one, the model becomes the plain base."""
        if name not in self:
            raise ValueError(f'no adapter {name!r}' + nearest(name, self.names))
        if name == self._active:
            self.switch(None)
        self._forget(name)
        if self._store is not None:
            self._store.paths.pop(name, None)

    # -- files and hot-swapping ---------------------------------------------------------------------------------------

    @in_turn
    def save(self, name: str, path: str, **facts: Any) -> None:
        """Write an adapter with its head to a file, see :func:`mmpetl.save_adapter`."""
        with self.using(name):
            write_adapter(self.model, path, **{'name': name, **facts})

    @in_turn
    def tensors(self, name: str) -> Dict[str, Tensor]:
        """The tensors of an adapter under the model's names; those of methods and head share memory with the
        adapter."""
        adapter = self[name]
        if name == self._active:
            return adapter_state(self.model)
        found = {f'{self.prefix}{k}': t for k, t in adapter.tuned.items()}
        for key, method in adapter.methods.items():
            found.update({f'{self.prefix}petl.{key}.{k}': t for k, t in method.state_dict().items()})
        for key, module in adapter.modules.items():
            found.update({f'{key}.{k}': t for k, t in module.state_dict().items()})
        return found

    @in_turn
    @torch.no_grad()
    def hot_swap(self, name: str, path: str, force: bool = False) -> Dict[str, Any]:
        """Copy the tensors of a file into an adapter of the same structure, in place: compiled graphs and optimizers
        keep their tensors.

        Returns:
            The header of the file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If methods, head or base differ, or the adapter was merged; nothing is changed then.
        """
        self._check_not_merged()
        path = local_path(path)
        adapter, (given, header) = self[name], adapter_file.load(path)
        self._keep(name)
        with self.using(name):
            facts = dict(model_facts(self.model), fingerprint=self.backbone.petl.base_fingerprint())
        try:
            for line in check_belongs(header, facts, path, force):
                print_log(line, 'current', logging.WARNING)
        except ValueError as error:
            raise ValueError(
                f'adapter {name!r}: {error}, or add it by add_file: only tensors can be swapped in place') from None
        own, given = self.tensors(name), renamed(given, header, self.prefix)
        odd = sorted(own.keys() ^ given.keys()) or [k for k in own if own[k].shape != given[k].shape]
        if odd:
            raise ValueError(
                f'{path} and adapter {name!r} differ at {odd[0]}: only tensors of the same shapes can be swapped in '
                f'place; '
                'use add_file')
        for key, tensor in self.tensors(name).items():
            tensor.copy_(given[key])
        adapter.header = header
        return header

    # -- combining ----------------------------------------------------------------------------------------------------

    @in_turn
    @torch.no_grad()
    def combine(self, name: str, weights: Mapping[str, float], how: str = 'linear', density: float = 0.5, seed: int = 0,
                activate: bool = True) -> None:
        """Add an adapter made of others whose methods are changes of weights.

        The change that each makes to every weight is computed by merging it into the base, see :func:`combine_deltas`
        for the rules. The result is exact and dense: an adapter without methods whose tuned base parameters are base
        plus combined change. Its head is that of the first adapter.

        Args:
            name: New name.
            weights: Adapter -> factor.
            how: 'linear', 'ties' or 'dare'.
            density: Part of each change that 'ties' and 'dare' keep.
            seed: Of the random choice of 'dare'.
            activate: Switch to it.

        Raises:
            ValueError: If an adapter is unknown or changes more than weights (its method is named), or an option is
                unfit.
        """
        self._check_not_merged()
        self._check_name(name)
        if how not in COMBINATIONS:
            raise ValueError(f'unknown combination {how!r}' + nearest(how, COMBINATIONS))
        check_factors(weights)
        before, changes = self._active, []
        for key in weights:
            with self.using(key):
                tuned = {
                    n: p.detach().clone()
                    for n, p in self.backbone.named_parameters() if n in set(self._tuned_names(self[key]))
                }
                changes.append(deltas_of(self.backbone, key, tuned, self._base))
        combined = combine_deltas(changes, list(weights.values()), how, density, seed)
        first = self[next(iter(weights))]
        self.add(name, (), tuple(combined), first.trunk, {k: copy.deepcopy(m) for k, m in first.modules.items()})
        parameters = dict(self.backbone.named_parameters())
        for key, change in combined.items():
            parameters[key].add_(change)
        if not activate:
            self.switch(before)
