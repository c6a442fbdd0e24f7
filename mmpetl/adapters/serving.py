# SPDX-License-Identifier: Apache-2.0
"""Serving many adapters on one base: from disk, and in batches whose every sample names its own."""

import logging
from contextlib import contextmanager, nullcontext
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..backbones.attach import freeze
from ..backbones.base import base_fingerprint
from ..backbones.load_hook import load_base
from ..names import plain_name
from ..sites import Method, Tap, nearest
from ..tuning import model_facts, part_facts
from ..weights.adapter_file import base_name
from ..weights.hub import local_path
from .adapter import Adapter
from .mixed import Chosen, groups_of, last_of, mixed_taps, rows_of
from .store import AdapterStore, Paths, Place, read_adapter
from .switched import Switched, in_turn

#: Parts of a model behind its backbone, in the order in which they are called.
PARTS = ('neck', 'head', 'cls_head')


class _Handed(nn.Module):
    """Stands in the place of a head, and keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: Any = None

    def forward(self, x: Any) -> Any:
        """Features (B, ...) of a head, as they are."""
        self.given = x
        return x


class Served(Switched):
    """Adapters from disk, and batches of several; see :class:`mmpetl.adapters.bank.AdapterBank`."""

    # -- from disk ----------------------------------------------------------------------------------------------------

    @in_turn
    def serve(self, adapters: Paths, keep: int = 100, keep_bytes: Optional[int] = None,
              force: bool = False) -> List[str]:
        """Serve adapters from disk: each is read when it is first named, and those that were used last stay in memory.

        They are for reading: one that was trained or written into stays in memory, with a line in the log. All
        adapters of a batch are in memory while it runs, whatever the limits say, and so is the active one.

        Args:
            adapters: Folder, whose ``*.safetensors`` are named by their stems, or name -> file or ``hf://`` address.
            keep: Most adapters in memory.
            keep_bytes: Most bytes of adapters in memory, heads included; None: no limit.
            force: See :func:`mmpetl.load_adapter`.

        Returns:
            Their names.

        Raises:
            FileNotFoundError: If a file or folder does not exist.
            ValueError: If a name or a limit is unfit, or the bank serves adapters already.
        """
        if self._store is not None:
            raise ValueError('the bank serves adapters from disk already: make one table of all')
        store = AdapterStore(self._place(force), adapters, keep, keep_bytes)
        for name in store.paths:
            self._check_name(name)
        self._store = store
        return list(store.paths)

    def prefetch(self, names: Sequence[str]) -> None:
        """Begin to read adapters that :meth:`serve` knows, in a thread, so that the next batch need not wait; at most
        ``keep`` at a time. What is wrong with one is said when it is used.

        Raises:
            ValueError: If there is no such adapter.
        """
        for name in names:
            if name not in self:
                raise ValueError(f'no adapter {name!r}' + nearest(name, self.names))
        if self._store is not None:
            self._store.ahead(n for n in names if n not in self._adapters)

    @in_turn
    def _load(self, name: str) -> None:
        """Read an adapter from disk into memory."""
        store = self._store
        assert store is not None
        path = store.paths[name]
        adapter = store.read(name) or read_adapter(store.place, local_path(path))
        assert adapter is not None
        adapter.plan = self._enter(name, path, adapter)
        store.entered(name, adapter)
        self._let_go([name])

    def _place(self, force: bool) -> Place:
        with self.using(None):
            return Place(self.model, self.backbone, self.prefix, self._plain.modules, model_facts(self.model),
                         part_facts, force)

    def _enter(self, name: str, path: str, adapter: Adapter) -> List[Tap]:
        """Take an adapter that was read.

        Returns:
            Its taps for mixed batches, one per block.

        Raises:
            ValueError: If it was trained on another base.
        """
        self._check_base(path, adapter)
        place = next(self.backbone.parameters()).device
        for module in (*adapter.methods.values(), *adapter.modules.values()):
            module.to(place)
        adapter.tuned = {k: v.to(place) for k, v in adapter.tuned.items()}
        self._adapters[name] = adapter
        plan = self.backbone.petl.plan(adapter.methods)
        looking = [m for m in adapter.methods.values() if type(m).on_loaded is not Method.on_loaded]
        if looking:
            # As the load hook of the backbone does; what they look at is the base without another adapter's changes.
            with nullcontext() if self._active is None else self.using(None):
                for method in looking:
                    method.on_loaded()
        return plan

    def _check_base(self, path: str, adapter: Adapter) -> None:
        header = adapter.header or {}
        if 'base' not in header:
            return  # a folder of peft says nothing of the weights
        lacking = sorted(set(self._tuned_names(adapter)) ^ adapter.tuned.keys())
        if lacking:
            raise ValueError(f'{path}: the tensors and the patterns of tune differ at {lacking[0]}')
        wanted = header['base'].get('fingerprint')
        if wanted and wanted != self._print_of(adapter):
            if not self._adapters:
                # Nothing stands on the weights yet: those that init_cfg names are taken if they are the right ones.
                self._take_base(wanted)
            if wanted != self._print_of(adapter):
                raise ValueError(f'{path}: wrong base: it was trained on {base_name(header["base"])} (fingerprint '
                                 f'{wanted[:12]}), the model has {self._print_of(adapter)[:12]}')

    def _print_of(self, adapter: Adapter) -> str:
        if adapter.tune not in self._prints:
            with self.using(None):
                self._prints[adapter.tune] = self._fingerprint(adapter)
        return self._prints[adapter.tune]

    def _take_base(self, wanted: str) -> None:
        base = load_base(self.backbone)
        if base is not None and base_fingerprint(self.backbone, base) == wanted:
            self.backbone.load_state_dict(base)
            self._prints.clear()

    def _fingerprint(self, adapter: Adapter) -> str:
        """Fingerprint of the base without what the adapter changes."""
        # What trains is left out of it, so the choice is the adapter's for a moment.
        freeze(self.backbone, adapter.tune)
        try:
            return self.backbone.petl.base_fingerprint()
        finally:
            freeze(self.backbone, ())

    def _forget(self, name: str) -> None:
        self._adapters.pop(name, None)
        if self._store is not None:
            self._store.left(name)

    def _let_go(self, in_use: Sequence[Optional[str]]) -> None:
        """Forget the adapters from disk that were not used for longest, within the limits."""
        store = self._store
        if store is None:
            return
        for name in store.too_many([*in_use, *self._in_batch, self._active]):
            if store.is_changed(name, self._adapters[name]):
                print_log(f'adapter {name!r} was changed after it was read from disk: it stays in memory and is no '
                          'longer read from there; save it if it is to last', 'current', logging.WARNING)
                self._keep(name)
            else:
                self._forget(name)

    def _keep(self, name: str) -> None:
        """From now on an adapter is one of those in memory, as if it had been added."""
        if self._store is not None and name in self._store.paths:
            self._store.left(name)
            del self._store.paths[name]
            self._adapters[name].plan = None

    def _check_name(self, name: str) -> None:
        if name in self:
            raise ValueError(f'there is an adapter {name!r} already: delete it, or use another name')
        plain_name(name, 'adapter name')
        if not all(c.isalnum() or c in '._-' for c in name):
            raise ValueError(f'adapter name {name!r}: use letters, digits, . - _')

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
        with self.backbone.petl.turn.held(), self._batch_of(adapter_ids) as chosen:
            before, training = self._active, self.model.training
            self.switch(None)
            try:
                mixed_taps(self.backbone, {n: self._for_mixing(a) for n, a in chosen.items()}, list(adapter_ids))
                for adapter in chosen.values():
                    for method in adapter.methods.values():
                        method.train(training)
                yield self.backbone
            finally:
                self.switch(before)

    @contextmanager
    def _batch_of(self, adapter_ids: Sequence[Optional[str]]) -> Iterator[Dict[Optional[str], Adapter]]:
        """The adapters of a batch, all of them in memory within the context."""
        if not isinstance(adapter_ids, Iterable):
            raise ValueError(f'adapter_ids={adapter_ids!r:.80}: give a list with one name per sample')
        before, self._in_batch = self._in_batch, (*self._in_batch, *adapter_ids)
        try:
            yield {name: self._plain if name is None else self[name] for name in dict.fromkeys(adapter_ids)}
        finally:
            self._in_batch = before
            self._let_go(())

    def _for_mixing(self, adapter: Adapter) -> Chosen:
        """What :func:`mixed_taps` asks of an adapter."""
        # A head inside the backbone is one for all samples of a batch, as tuned parameters are.
        return adapter.methods, self._tuned_names(adapter), adapter.plan

    @in_turn
    def predict(self, inputs: Tensor, adapter_ids: Sequence[Optional[str]]) -> List[Tensor]:
        """Scores of each sample under its own adapter, necks and heads included.

        What cannot stand in one batch (see :meth:`mixed`) runs in batches of its own, one after the other. A model of
        transformers, or a module of one's own, is called as it is: where its last step is one head, that of each
        adapter reads the rows of one batch; else each adapter has a batch of its own.

        Args:
            inputs: Preprocessed inputs of the model, (B, 3, H, W), (B, 3, T, H, W), or as a
                model of transformers takes them first.
            adapter_ids: One name per sample; None: the base with the head that the model had when the bank was made.

        Returns:
            One tensor (classes) per sample; of a model without a head its last features.

        Raises:
            ValueError: If an adapter is unknown, or their number is not that of the inputs.
        """
        if len(inputs) != len(adapter_ids) or not len(inputs):
            raise ValueError(f'{len(adapter_ids)} adapter_ids for {len(inputs)} inputs: give one name per input')
        heads = [k for k, m in self._plain.modules.items() if any(True for _ in m.parameters())]
        foreign = bool(heads) and not (isinstance(self.model, BaseModel) and set(heads) <= set(PARTS))
        ids, scores = list(adapter_ids), [None] * len(adapter_ids)
        with self._batch_of(ids) as chosen:
            groups = groups_of(self.backbone, {n: self._for_mixing(a) for n, a in chosen.items()})
            for group in groups:
                rows = [i for i, n in enumerate(ids) if n in group]
                part = inputs if len(rows) == len(ids) else inputs[torch.tensor(rows, device=inputs.device)]
                # An adapter that is alone in its group needs no mixing, and may be one that cannot be mixed.
                within = self.using(group[0]) if len(group) == 1 else self.mixed([ids[i] for i in rows])
                with within:
                    if not foreign:
                        features = self.backbone(part)
                    else:
                        features = self._before(heads[0], part) if len(heads) == 1 else None
                if features is not None:
                    self._score(features, rows, ids, scores, heads if foreign else PARTS)
                    continue
                for name in group:
                    alone = [i for i in rows if ids[i] == name]
                    with self.using(name) as model:
                        given = model(inputs[torch.tensor(alone, device=inputs.device)])
                    for place, score in zip(alone, _scores_in(given)):
                        scores[place] = score
        return scores  # type: ignore[return-value]

    def _before(self, head: str, inputs: Tensor) -> Any:
        """What the head of a model reads of inputs (B, ...); None if it is not the last step of the model."""
        handed, own = _Handed(), getattr(self.model, head)
        setattr(self.model, head, handed)
        try:
            given = _scores_in(self.model(inputs))
        except (AttributeError, IndexError):
            return None  # the model looks into its head
        finally:
            setattr(self.model, head, own)
        return handed.given if handed.given is given else None

    def _score(self, features: Any, places: Sequence[int], ids: Sequence[Optional[str]], scores: List[Any],
               parts: Sequence[str]) -> None:
        """Put the samples of a group through their necks and heads."""
        by_name: Dict[Optional[str], List[int]] = {}
        for row, place in enumerate(places):
            by_name.setdefault(ids[place], []).append(row)
        device = next(self.backbone.parameters()).device
        for name, rows in by_name.items():
            modules = (self._plain if name is None else self[name]).modules
            out = features if len(by_name) == 1 else rows_of(features, torch.tensor(rows, device=device))
            for part in parts:
                module = modules.get(part)
                if module is not None:
                    module.train(self.model.training)
                    out = module(out)
            for row, score in zip(rows, last_of(out)):
                scores[places[row]] = score


def _scores_in(output: Any) -> Any:
    """The scores (B, classes) in what a model gives."""
    if isinstance(output, Mapping):
        return output['logits'] if 'logits' in output else last_of(output)
    return last_of(output)
