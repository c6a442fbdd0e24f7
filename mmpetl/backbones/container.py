# SPDX-License-Identifier: Apache-2.0
"""``backbone.petl``: the module that owns all methods of one backbone, and nothing of its base."""

import inspect
from contextlib import contextmanager
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from mmengine.model import ModuleDict
from torch import Tensor, nn

from ..sites import Method, RunTime, Tap, plan_prompts
from ..weights.belongs import plain
from .base import base_fingerprint, stored_fingerprint
from .base_dtype import narrow, widen
from .cast import hold_all, release
from .family import Family, family_named
from .load_hook import load_base
from .side import SideBlock
from .turn import Turn


class PETL(ModuleDict):
    """Methods by name, in config order.

    An MMEngine ModuleDict, so that ``init_weights`` reaches the methods after the base's own initialisers.

    Args:
        backbone: The specialised backbone. Held outside the module tree: the base is not a child of its methods.
        family_name: Which family the backbone belongs to.
        methods: Methods by name.
        trunk: 'eval' keeps the base in evaluation mode while training, 'train' lets it follow the model.
    """

    def __init__(self, backbone: nn.Module, family_name: str, methods: Dict[str, Method], trunk: str) -> None:
        super().__init__(methods)
        # In a tuple, which is no module: otherwise model and petl would hold each other as children for
        # ever.
        self._owner = (backbone, )
        self.family_name = family_name
        self.trunk = trunk
        self.enabled = True
        self.turn = Turn()
        # True lets all prompts travel in the stream, the textbook form; tests compare with it.
        self.full_prompts = False
        # What is known of the base's weights: name, cached fingerprint, whether they were loaded. No state.
        self.base: Dict[str, Any] = {}
        self.configs: Dict[str, Dict[str, Any]] = {}
        self.tune: Tuple[str, ...] = ()
        #: Names of base parameters that are stored in fewer bits while they are frozen, and in which type.
        self.stored: FrozenSet[str] = frozenset()
        self.stored_as = torch.bfloat16
        #: Where the frames of a clip are averaged, see :func:`mmpetl.backbones.attach.attach`.
        self.frame_pool = 'after_norm'

    @property
    def backbone(self) -> nn.Module:
        return self._owner[0]

    @property
    def family(self) -> Family:
        return family_named(self.family_name)

    @property
    def blocks(self) -> List[nn.Module]:
        """The specialised blocks in order."""
        return self.family.blocks(self.backbone)

    @property
    def taps(self) -> List[Tap]:
        return [block.tap for block in self.blocks]

    def facts(self) -> Dict[str, Any]:
        """What decides whether an adapter belongs on this backbone; see :func:`mmpetl.weights.belongs.check_belongs`.

        Methods with all their arguments (and which of these change costs only), tuned parameters, class, widths, heads
        and token grid of the blocks, output.
        """
        specs = [block.spec for block in self.blocks]
        backbone = self.backbone
        output = plain(getattr(backbone, 'out_type', None))
        # The sited class is ours and may be renamed; files must go by upstream's.
        upstream = next(c for c in type(backbone).__mro__ if not c.__module__.startswith('mmpetl.'))
        return dict(
            methods=[method_config(method, name) for name, method in self.items()],
            defaults=[_defaults(method) for method in self.values()],
            costs_only=[list(method.costs_only) for method in self.values()],
            tune=list(self.tune),
            backbone=f'{upstream.__module__}.{upstream.__qualname__}',
            heads=[spec.heads for spec in specs],
            dims=[spec.dim for spec in specs],
            # Of the first block: later ones follow from it.
            grid=plain((specs[0].frames, *specs[0].grid) if specs[0].frames else specs[0].grid) or None,
            window=[plain(spec.window) for spec in specs] if specs[0].window else None,
            output=f'{output} of frames averaged before the norm' if self.frame_pool == 'before_norm' else output)

    def base_fingerprint(self, state: Optional[Mapping[str, Tensor]] = None) -> str:
        """Fingerprint of the frozen base parameters (...), of the backbone or of ``state``; see
        :func:`mmpetl.backbones.base.base_fingerprint`."""
        return base_fingerprint(self.backbone, state)

    def stored_fingerprint(self) -> str:
        """The same of the backbone's parameters as they are in memory."""
        return stored_fingerprint(self.backbone)

    def widen(self) -> Any:
        """Weights stored in half precision become float32 again: those of the base's file where it is at hand and the
        right one, else the stored ones. A log line says which.

        Returns:
            What :meth:`narrow` takes to undo it.
        """
        before = (self.stored, self.base.get('identity'))
        widen(self.backbone, self.file_state() if self.stored else None)
        return before

    def narrow(self, before: Any) -> None:
        """Undo :meth:`widen`."""
        narrow(self.backbone, *before)

    def file_state(self) -> Optional[Dict[str, Tensor]]:
        """Base weights (...) by name of the file that ``init_cfg`` names, converted; None where it cannot be read."""
        try:
            return load_base(self.backbone)
        except (OSError, ValueError):  # moved or replaced since: the stored weights are there
            return None

    def train(self, mode: bool = True) -> 'PETL':
        super().train(mode)
        if mode and self.trunk == 'eval':
            # The backbone calls its children in order and this one comes last, so the base's modules are already
            # switched.
            for child in self.backbone.children():
                if child is not self:
                    child.eval()
        return self

    def refresh(self) -> None:
        """Rebuild all taps; call it after a method's points, layers or prompt counts have changed."""
        taps = self.plan(self if self.enabled else {})
        # A side method reads whole activations of the last block too.
        if taps[-1].tokenwise and not self.side_active():
            taps[-1].tokens_read = self.family.tokens_read(self.backbone)
        self.place(taps)

    def plan(self, methods: Mapping[str, Method]) -> List[Tap]:
        """Bind methods to the blocks and make one tap per block, of which no module knows yet.

        Raises:
            ValueError: If prompts in the stream do not fit the backbone's outputs.
        """
        family, backbone, blocks = self.family, self.backbone, self.blocks
        for method in methods.values():
            method.bind(blocks)
        taps = [Tap(list(methods.values()), i) for i in range(len(blocks))]
        # The first method that has an opinion; otherwise the published form of the backbone.
        chosen = [m.pool_prompts for m in methods.values() if m.pool_prompts is not None]
        pooled = chosen[0] if chosen else family.pools_prompts(backbone)
        plan_prompts(taps, bool(pooled), self.full_prompts)
        if pooled == 'only' and taps[-1].prompts_pooled:
            taps[-1].prompts_alone, taps[-1].grid_dropped = True, not family.merges_prompts
        if any(tap.num_prompts and tap.prompts_read for tap in taps):
            family.check_prompts(backbone, bool(pooled))
        return taps

    def place(self, taps: Sequence[Tap]) -> None:
        """Hand one tap per block to all sited modules: the only place where modules get their taps."""
        family, backbone, blocks = self.family, self.backbone, self.blocks
        run_time = RunTime(blocks[0].spec.grid)
        run_time.frames, run_time.mean_first = blocks[0].spec.frames, self.frame_pool == 'before_norm'
        self.run_time = run_time
        sited = tuple(family.classes.values())
        for block, tap in zip(blocks, taps):
            tap.run_time, tap.grid = run_time, block.spec.grid
            # By type: a block's attention may sit at any depth, and windows have an attention of their own.
            for module in block.modules():
                if type(module) in sited:
                    module.tap, module.extra_tokens = tap, block.spec.extra_tokens
        # What acts on the patch embedding belongs to block 0, and the final norm to the last.
        family.embed(backbone).tap = taps[0]
        entry = family.entry(backbone)
        if entry is not None:
            entry.tap = taps[0]
        final = family.final_norm(backbone)
        if isinstance(final, family.final_class):
            final.tap = taps[-1]  # type: ignore[attr-defined]
        # Looking the family up is no work for a forward pass: a compiler could not trace it.
        self._side_view = (tuple(blocks), final)

    def loaded(self) -> None:
        """Tell the methods that the base has got weights; there are none to look at on the meta device."""
        for method in self.values():
            method.bind(self.blocks)
            if not any(p.is_meta for p in self.blocks[0].parameters()):
                method.on_loaded()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within the context the base runs alone; see :class:`~mmpetl.backbones.turn.Turn` for threads."""
        with self.turn.held():
            # Nested contexts must end where they began, not at True.
            before, self.enabled = self.enabled, False
            self.refresh()
            try:
                yield
            finally:
                self.enabled = before
                self.refresh()

    def _replicate_for_data_parallel(self) -> 'PETL':
        """torch.nn.DataParallel copies modules one by one, and what blocks know of methods would stay the first
        device's.

        Raises:
            ValueError: Always.
        """
        raise ValueError('torch.nn.DataParallel cannot copy a model with methods: start one process per device with '
                         'torchrun (transformers.Trainer then takes DistributedDataParallel), or show the process one '
                         'device (CUDA_VISIBLE_DEVICES=0)')

    # -- clips --------------------------------------------------------------------------------------------------------

    def images_of(self, x: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) -> the images (B, 3, T', H, W) that the base reads of each: its frames, or a method's
        choice."""
        return self._side_view[0][0].tap.images(x)

    def pooled(self, y: Tensor) -> Tensor:
        """Features of the images of each clip (B, T', C) -> (B, C'): their mean, or what a method says."""
        return self._side_view[0][-1].tap.pool(y)

    # -- side methods -------------------------------------------------------------------------------------------------

    def side_method(self) -> Optional[Method]:
        """The method whose feature replaces the backbone's output, or None."""
        for method in self.values():
            if 'side' in method.points():
                return method
        return None

    def side_active(self) -> bool:
        return self.enabled and self.side_method() is not None

    def record(self, run: Callable[[], Any], given: Optional[Tensor] = None,
               keep: bool = False) -> List[Dict[str, Tensor]]:
        """Run the base without gradients and return what the side method reads of every block.

        Args:
            run: Runs it.
            given: What the backbone was given (B, ...).
            keep: Leave the half-precision copies of weights to the blocks.
        """
        method = self.side_method()
        blocks = self._side_view[0]
        if keep:
            hold_all(blocks, next(blocks[0].parameters()), norms=('norm1', 'norm2'))
        taps = [block.tap for block in blocks]
        end = len(taps) - 1
        read = [i for i in range(len(taps)) if method.active('side', i)]
        for i, tap in enumerate(taps):
            # None means 'to be filled'; a block stores under the names that it finds.
            tap.recorder = {name: None for name in method.side_reads if (i == end if name == 'out' else i in read)}
            # Nobody reads what the last block that is read makes of the tokens, nor the blocks behind it.
            tap.recorder['keep'] = keep
            tap.recorder['skip'] = 'out' not in method.side_reads and i >= read[-1]
        try:
            # The whole point of side methods: no gradient enters the base.
            with torch.no_grad():
                run()
            if 'input' in method.side_reads:
                taps[0].recorder['input'] = given
            return [{
                name: value
                for name, value in tap.recorder.items() if value is not None and name not in ('skip', 'keep')
            } for tap in taps]
        finally:
            for tap in taps:
                tap.recorder = None

    def side_feature(self, run: Callable[[], Any], given: Optional[Tensor] = None) -> Tensor:
        """Feature (B, C') of the side method; ``run`` executes the frozen base on what it is ``given`` (B, ...)."""
        blocks = self._side_view[0]
        # Not where memory is to be saved: then those of one block at a time.
        keep = not any(block.recompute_level for block in blocks)
        try:
            return self.side_method().on_side(self.record(run, given, keep), self.side_blocks())
        finally:
            for block in blocks:
                release(block)

    def side_blocks(self) -> List[SideBlock]:
        """The frozen blocks as a side method may use them."""
        blocks, final = self._side_view
        return [SideBlock(block, final) for block in blocks]


def method_config(method: Method, name: str) -> Dict[str, Any]:
    """The config that builds a method again, defaults written out."""
    return dict(type=type(method).__name__, **plain(method.arguments), name=name)


def _defaults(method: Method) -> Dict[str, Any]:
    parameters = inspect.signature(type(method).__init__).parameters
    return {k: p.default for k, p in parameters.items() if p.default is not inspect.Parameter.empty}
