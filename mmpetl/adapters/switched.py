# SPDX-License-Identifier: Apache-2.0
"""A model with named adapters, of which one acts or none."""

import copy
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from ..backbones.attach import attach, freeze, give_side
from ..backbones.family import backbone_in
from ..backbones.load_hook import load_base
from ..sites import Method, nearest
from ..tuning import find_backbone, unwrap
from .adapter import Adapter
from .store import AdapterStore

#: Most adapters that the bank's text lists.
LISTED = 20
#: Children of a model that are neither its backbone nor part of an adapter.
SHARED = ('backbone', 'data_preprocessor')


def in_turn(method: Any) -> Any:
    """The method runs while no other thread changes or runs the model; contexts of other threads are waited for."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.backbone.petl.turn.held():
            return method(self, *args, **kwargs)

    return run


class Switched:
    """A model with named adapters, of which one acts; see :class:`mmpetl.adapters.bank.AdapterBank`."""

    def __init__(self, model: nn.Module, name: str = 'default', with_cp: Optional[bool] = None) -> None:
        self.model = unwrap(model)
        try:
            self.backbone, self.prefix = find_backbone(self.model)
        except ValueError:
            attach(backbone_in(self.model), with_cp=with_cp)
            self.backbone, self.prefix = find_backbone(self.model)
        petl = self.backbone.petl
        self._adapters: Dict[str, Adapter] = {}
        self._active: Optional[str] = None
        #: Values of the base under adapters that change it.
        self._base: Dict[str, Tensor] = {}
        self._store: Optional[AdapterStore] = None
        #: Fingerprints of the base without what patterns change.
        self._prints: Dict[Tuple[str, ...], str] = {}
        #: Adapters of the batch at hand.
        self._in_batch: Tuple[Optional[str], ...] = ()
        # The base is an adapter without methods: switching has one rule for all.
        self._plain = Adapter({}, {}, (), petl.trunk, modules=self._modules())
        if len(petl) or petl.tune:
            first = Adapter(dict(petl.items()), dict(petl.configs), petl.tune, petl.trunk, modules=self._modules())
            self._plain.modules = {k: copy.deepcopy(m) for k, m in first.modules.items()}
            self._adapters[name], self._active = first, name
            if self._tuned_names(first):
                stored, parameters = load_base(self.backbone) or {}, dict(self.backbone.named_parameters())
                self._base = {
                    n: stored.get(n, parameters[n]).detach().clone().to(parameters[n])
                    for n in self._tuned_names(first)
                }

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def names(self) -> List[str]:
        """All adapters, in the order in which they were added; then those on disk alone."""
        stored = self._store.paths if self._store else {}
        return [*self._adapters, *(name for name in stored if name not in self._adapters)]

    @property
    def in_memory(self) -> List[str]:
        """Adapters that :meth:`serve` found on disk and that are in memory now, the one used last at the end."""
        return list(self._store.loaded) if self._store else []

    @property
    def active(self) -> Optional[str]:
        """The adapter that acts, None while the model is the plain base."""
        return self._active

    def __repr__(self) -> str:
        on = repr(self._active) if self._active is not None else 'none, the model is the plain base'
        lines = [f'{type(self).__name__} on {type(self.model).__name__}: {len(self.names)} adapters, in use: {on}']
        for name in self.names[:LISTED]:
            adapter = self._adapters.get(name)  # what is on disk stays there
            kinds = ['on disk'] if adapter is None else [type(method).__name__ for method in adapter.methods.values()]
            kinds += [f'tune={list(adapter.tune)}'] if adapter is not None and adapter.tune else []
            lines.append(f'  {name!r}: {", ".join(kinds) or "no method"}')
        if len(self.names) > LISTED:
            lines.append(f'  and {len(self.names) - LISTED} more')
        return '\n'.join(lines)

    def __contains__(self, name: str) -> bool:
        return name in self._adapters or (self._store is not None and name in self._store.paths)

    def __getitem__(self, name: str) -> Adapter:
        if name not in self:
            raise ValueError(f'no adapter {name!r}' + nearest(name, self.names))
        if self._store is None:
            return self._adapters[name]
        with self.backbone.petl.turn.held():
            if name not in self._adapters:
                self._load(name)
            self._store.used(name)
            return self._adapters[name]

    def _load(self, name: str) -> None:
        """Read an adapter from disk into memory."""
        raise NotImplementedError

    def _modules(self) -> Dict[str, nn.Module]:
        # The backbone is called otherwise in models of transformers, and in a user's own module.
        shared = (*SHARED, self.prefix.split('.')[0])
        return {k: m for k, m in self.model.named_children() if k not in shared} if self.prefix else {}

    def _current(self) -> Adapter:
        return self._plain if self._active is None else self._adapters[self._active]

    def _check_not_merged(self) -> None:
        wanted = self._current().methods
        # Merging empties petl and cannot tell the bank.
        if list(self.backbone.petl.values()) != list(wanted.values()):
            raise ValueError(
                f'the methods of adapter {self._active!r} are no longer in the backbone: they were merged into the '
                f'base, '
                'which is not the base of the other adapters any more; load the base and the adapter files anew')

    # -- switching ----------------------------------------------------------------------------------------------------

    @in_turn
    def switch(self, name: Optional[str]) -> None:
        """Make an adapter the active one; None makes the model the plain base, with the head that it had when the bank
        was made.

        Raises:
            ValueError: If there is no such adapter, or the active one was merged.
        """
        self._check_not_merged()
        self._put(self._plain if name is None else self[name])
        self._active = name

    @torch.no_grad()
    def _put(self, adapter: Adapter) -> None:
        petl, parameters, leaving = self.backbone.petl, dict(self.backbone.named_parameters()), self._current()
        # Set again below: methods and heads that wait are out of reach of train() and eval().
        training = self.model.training
        self._specialise_for(adapter.methods)
        if leaving is not adapter:
            for key in self._tuned_names(leaving):
                # Values are exchanged, not parameters, which optimizers and compiled graphs hold.
                value, known = parameters[key].detach(), leaving.tuned.get(key)
                if known is None or known.dtype != value.dtype or not torch.equal(known, value):
                    leaving.tuned[key] = value.clone()
                parameters[key].copy_(self._base[key])
            freeze(self.backbone, adapter.tune)  # before values come in: what trains is never in half precision
            parameters = dict(self.backbone.named_parameters())  # 8-bit weights that begin to train are new ones
            for key in self._tuned_names(adapter):
                self._base.setdefault(key, parameters[key].detach().clone())
                if key in adapter.tuned:
                    parameters[key].copy_(adapter.tuned[key])
        for name in list(petl):
            del petl[name]
        petl.update(adapter.methods)
        petl.configs, petl.tune, petl.trunk, petl.enabled = dict(adapter.configs), adapter.tune, adapter.trunk, True
        for name, module in adapter.modules.items():
            setattr(self.model, name, module)
        petl.refresh()
        freeze(self.backbone, adapter.tune)
        self.model.train(training)

    def _tuned_names(self, adapter: Adapter) -> List[str]:
        """Parameters of the backbone that are the adapter's own: those that it tunes, and a head that timm keeps inside
        the backbone."""
        in_head = self.backbone.petl.family.in_head
        return [n for n in self._base_names()
                if (adapter is not self._plain and in_head(n)) or any(fnmatchcase(n, p) for p in adapter.tune)]

    def _base_names(self) -> List[str]:
        return [n for n, _ in self.backbone.named_parameters() if not n.startswith('petl.')]

    def _specialise_for(self, methods: Mapping[str, Method]) -> None:
        """Side methods need the backbone's class for them, which is the plain one's equal without such a method."""
        if any('side' in m.points() for m in methods.values()):
            give_side(self.backbone, self.backbone.petl.family)

    @contextmanager
    def using(self, name: Optional[str]) -> Iterator[nn.Module]:
        """``with bank.using('a') as model:`` the adapter is active within the context."""
        with self.backbone.petl.turn.held():
            before = self._active
            self.switch(name)
            try:
                yield self.model
            finally:
                self.switch(before if before is not None and before in self else None)

    @contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        """Within the context the base runs alone; the active adapter's head stays."""
        head = self._current().modules
        with self.using(None) as model:
            for name, module in head.items():
                setattr(model, name, module)
            yield model
