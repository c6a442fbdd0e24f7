# SPDX-License-Identifier: Apache-2.0
"""Many adapters on one frozen base.

An :class:`AdapterBank` holds named adapters of one model. One of them, or none, is active: its methods are the children
of ``backbone.petl``, its head is the model's head, and its tuned base parameters stand in the backbone. The others wait
outside the module tree, so the model's state dict holds the active adapter alone, under the same keys as without a
bank.
"""

import copy
import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..backbones.attach import attach, build_methods, check_methods, config_of, freeze, give_side
from ..backbones.family import backbone_in
from ..backbones.load_hook import load_base
from ..names import plain_name
from ..sites import Method, nearest
from ..tuning import adapter_state, find_backbone, model_facts, unwrap, write_adapter
from ..weights import adapter_file
from ..weights.belongs import check_belongs
from .combine import COMBINATIONS, check_factors, combine_deltas, deltas_of
from .files import load_adapter, methods_of, renamed
from .mixed import mixed_taps, rows_of

#: Children of a model that are neither its backbone nor part of an adapter.
SHARED = ('backbone', 'data_preprocessor')


@dataclass
class Adapter:
    """One adapter of a bank.

    Attributes:
        methods: Methods by name, in order.
        configs: Their configs.
        tune: Patterns of base parameters that it changes.
        trunk: Mode of the base while training.
        tuned: Values of those base parameters while the adapter is not active.
        modules: What the model holds besides its backbone: head, neck.
        header: Header of the file that it came from.
    """
    methods: Dict[str, Method]
    configs: Dict[str, Dict[str, Any]]
    tune: Tuple[str, ...]
    trunk: str
    tuned: Dict[str, Tensor] = field(default_factory=dict)
    modules: Dict[str, nn.Module] = field(default_factory=dict)
    header: Optional[Dict[str, Any]] = None


def _in_turn(method: Any) -> Any:
    """The method runs while no other thread changes or runs the model; contexts of other threads are waited for."""

    @wraps(method)
    def run(self: 'AdapterBank', *args: Any, **kwargs: Any) -> Any:
        with self.backbone.petl.turn.held():
            return method(self, *args, **kwargs)

    return run


class AdapterBank:
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
        # The base is an adapter without methods: switching has one rule for all.
        self._plain = Adapter({}, {}, (), petl.trunk, modules=self._modules())
        if len(petl) or petl.tune:
            first = Adapter(dict(petl.items()), dict(petl.configs), petl.tune, petl.trunk, modules=self._modules())
            self._plain.modules = {k: copy.deepcopy(m) for k, m in first.modules.items()}
            self._adapters[name], self._active = first, name
            if petl.tune:
                stored, parameters = load_base(self.backbone) or {}, dict(self.backbone.named_parameters())
                self._base = {
                    n: stored.get(n, parameters[n]).detach().clone().to(parameters[n])
                    for n in self._tuned_names(first)
                }

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def names(self) -> List[str]:
        """All adapters, in the order in which they were added."""
        return list(self._adapters)

    @property
    def active(self) -> Optional[str]:
        """The adapter that acts, None while the model is the plain base."""
        return self._active

    def __contains__(self, name: str) -> bool:
        return name in self._adapters

    def __getitem__(self, name: str) -> Adapter:
        if name not in self._adapters:
            raise ValueError(f'no adapter {name!r}' + nearest(name, self._adapters))
        return self._adapters[name]

    def _modules(self) -> Dict[str, nn.Module]:
        return {k: m for k, m in self.model.named_children() if k not in SHARED} if self.prefix else {}

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

    @_in_turn
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
                leaving.tuned[key] = parameters[key].detach().clone()
                parameters[key].copy_(self._base[key])
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
        return [n for n in self._base_names() if any(fnmatchcase(n, p) for p in adapter.tune)]

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
                self.switch(before if before in self._adapters else None)

    @contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        """Within the context the base runs alone; the active adapter's head stays."""
        head = self._current().modules
        with self.using(None) as model:
            for name, module in head.items():
                setattr(model, name, module)
            yield model

    # -- adding and removing ------------------------------------------------------------------------------------------

    @_in_turn
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
        if trunk not in ('eval', 'train'):
            raise ValueError(f"trunk must be 'eval' or 'train', got {trunk!r}")
        petl = [petl] if isinstance(petl, Mapping) else list(petl)
        methods = build_methods(petl, [block.spec for block in self.backbone.petl.blocks])
        check_methods(methods, self.backbone.petl.family, self.backbone)
        configs = {n: config_of(c, methods[n]) for n, c in zip(methods, petl)}
        modules = {k: copy.deepcopy(m) for k, m in self._plain.modules.items()}
        for key, given in (head or {}).items():
            if key not in modules:
                raise ValueError(f'the model has no part {key!r}' + nearest(key, modules))
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

    def _check_name(self, name: str) -> None:
        if name in self._adapters:
            raise ValueError(f'there is an adapter {name!r} already: delete it, or use another name')
        plain_name(name, 'adapter name')
        if not all(c.isalnum() or c in '._-' for c in name):
            raise ValueError(f'adapter name {name!r}: use letters, digits, . - _')

    @_in_turn
    def add_file(self, name: str, path: str, activate: bool = True, force: bool = False) -> Dict[str, Any]:
        """Add the adapter of a file. Its head may have another number of classes than the model's.

        Args:
            name: New name.
            path: Adapter file.
            activate: Switch to it.
            force: See :func:`mmpetl.load_adapter`.

        Returns:
            The header of the file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it belongs on another base or does not fit; the bank is unchanged.
        """
        self._check_name(name)
        tensors, header = adapter_file.load(path)
        before, others = self._active, self._adapters.keys() - {name}
        modules = {k: copy.deepcopy(m) for k, m in self._plain.modules.items()}
        for key, module in modules.items():
            resize_linears(module, {k[len(key) + 1:]: t for k, t in tensors.items() if k.startswith(f'{key}.')})
        methods = methods_of(path, header, [block.spec for block in self.backbone.petl.blocks])
        self.add(name, methods, header['tune'], header['trunk'], modules)
        try:
            wanted = header['base'].get('fingerprint')
            if others and wanted and wanted != self.backbone.petl.base_fingerprint():
                raise ValueError(
                    f'{path}: wrong base: it was trained on {header["base"].get("id")!r} (fingerprint {wanted[:12]}), '
                    f'the adapters of the bank stand on {self.backbone.petl.base_fingerprint()[:12]}')
            load_adapter(self.model, path, force)
        except (ValueError, RuntimeError):
            self.switch(before)
            del self._adapters[name]
            raise
        self._adapters[name].header = header
        if not activate:
            self.switch(before)
        return header

    @_in_turn
    def delete(self, name: str) -> None:
        """Forget an adapter; if it is the active one, the model becomes the plain base."""
        self[name]
        if name == self._active:
            self.switch(None)
        del self._adapters[name]

    # -- files and hot-swapping ---------------------------------------------------------------------------------------

    @_in_turn
    def save(self, name: str, path: str, **facts: Any) -> None:
        """Write an adapter with its head to a file, see :func:`mmpetl.save_adapter`."""
        with self.using(name):
            write_adapter(self.model, path, **{'name': name, **facts})

    @_in_turn
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

    @_in_turn
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
        adapter, (given, header) = self[name], adapter_file.load(path)
        with self.using(name):
            facts = dict(model_facts(self.model), fingerprint=self.backbone.petl.base_fingerprint())
        try:
            for line in check_belongs(header, facts, path, force):
                print_log(line, 'current', logging.WARNING)
        except ValueError as error:
            raise ValueError(f'adapter {name!r}: {error}; only tensors can be swapped in place: use add_file') from None
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

    @_in_turn
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

    # -- several adapters in one batch --------------------------------------------------------------------------------

    @contextmanager
    def mixed(self, adapter_ids: Sequence[Optional[str]]) -> Iterator[nn.Module]:
        """Within the context each sample of a batch passes the backbone under its own adapter; None: under none.

        Heads differ between adapters: :meth:`predict` applies them.

        Args:
            adapter_ids: One name per sample.

        Raises:
            ValueError: If an adapter is unknown, changes base parameters, or holds methods that cannot be mixed on
                this backbone.
        """
        self._check_not_merged()
        chosen = {name: self._plain if name is None else self[name] for name in dict.fromkeys(adapter_ids)}
        with self.backbone.petl.turn.held():
            before, training = self._active, self.model.training
            self.switch(None)
            try:
                mixed_taps(self.backbone, {n: (a.methods, a.tune) for n, a in chosen.items()}, list(adapter_ids))
                for adapter in chosen.values():
                    for method in adapter.methods.values():
                        method.train(training)
                yield self.backbone
            finally:
                self.switch(before)

    @_in_turn
    def predict(self, inputs: Tensor, adapter_ids: Sequence[Optional[str]]) -> List[Tensor]:
        """Scores of each sample under its own adapter, necks and heads included.

        Args:
            inputs: Preprocessed inputs of the backbone, (B, 3, H, W) or (B, 3, T, H, W).
            adapter_ids: One name per sample; None: the base with the head that the model had when the bank was made.

        Returns:
            One tensor (classes) per sample.
        """
        with self.mixed(adapter_ids) as backbone:
            features = backbone(inputs)
        scores: List[Optional[Tensor]] = [None] * len(adapter_ids)
        for name in dict.fromkeys(adapter_ids):
            rows = [i for i, n in enumerate(adapter_ids) if n == name]
            modules = (self._plain if name is None else self[name]).modules
            out = rows_of(features, torch.tensor(rows, device=inputs.device))
            for part in ('neck', 'head', 'cls_head'):
                module = modules.get(part)
                if module is not None:
                    module.train(self.model.training)
                    out = module(out)
            for row, score in zip(rows, out):
                scores[row] = score
        return scores  # type: ignore[return-value]


def resize_linears(module: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Give linear layers the number of outputs that ``given`` has for them, and the module its number of classes."""
    for name, linear in module.named_modules():
        weight = given.get(f'{name}.weight' if name else 'weight')
        if isinstance(linear, nn.Linear) and weight is not None and weight.shape[1:] == linear.weight.shape[1:]:
            if len(weight) != linear.out_features:
                linear.weight = nn.Parameter(linear.weight.new_empty(weight.shape))
                if linear.bias is not None:
                    linear.bias = nn.Parameter(linear.bias.new_empty(len(weight)))
                if getattr(module, 'num_classes', None) == linear.out_features:
                    module.num_classes = len(weight)
                linear.out_features = len(weight)
