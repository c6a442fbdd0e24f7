# SPDX-License-Identifier: Apache-2.0
"""``attach``: specialise a backbone in place, build its methods, freeze the base."""

import inspect
from dataclasses import replace
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple, Union

import torch
from mmengine.model import ModuleDict
from torch import nn

from ..recompute import LEVELS
from ..registry import METHODS
from ..sites import BlockSpec, Method, nearest, positive
from .base_dtype import match_types, parse_base_dtype, store
from .container import PETL
from .family import Family, family_of
from .load_hook import install_load_hook
from .turn import watch


def specs_of(backbone: nn.Module) -> List[BlockSpec]:
    """The blocks of a backbone as methods see them, attached or not.

    Raises:
        ValueError: If the backbone cannot be adapted.
    """
    family = family_of(backbone)[1]
    _check_blocks(backbone, family)
    family.check(backbone)
    return list(family.specs(backbone))


def build_method(cfg: Union[Method, Mapping[str, Any]], specs: Sequence[BlockSpec]) -> Method:
    """Build one method from its config.

    Raises:
        ValueError: If the type or an argument is unknown (the nearest names are offered), or the method refuses its
            arguments.
    """
    if isinstance(cfg, Method):
        return cfg
    if not isinstance(cfg, Mapping) or not cfg.get('type'):
        raise ValueError(f"petl: {cfg!r:.80} is no method: give dicts such as dict(type='LoRA', rank=8)")
    cfg = dict(cfg)
    # A config may hold the class itself; adapter files never do, see from_data.
    kind = cfg.pop('type')
    cls: Any = kind if inspect.isclass(kind) else METHODS.get(str(kind))
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise ValueError(f'unknown method {kind!r}' + nearest(str(kind).split('.')[-1], METHODS.module_dict))
    # Checked here and not left to Python, whose TypeError names neither the method as configured nor
    # the nearest argument.
    known = [p for p in inspect.signature(cls.__init__).parameters if p not in ('self', 'specs')]
    for key in cfg:
        if key not in known:
            raise ValueError(f'{cls.__name__}: unknown argument {key!r}' + nearest(key, known))
    return cls(specs, **cfg)


#: What a container of methods has already.
_TAKEN = frozenset(dir(ModuleDict()))


def _name(method: Method, cfg: Any, taken: Mapping[str, Any]) -> str:
    wished = cfg.get('name') if isinstance(cfg, Mapping) else None
    name = wished or type(method).__name__.lower()
    if not isinstance(name, str) or name in _TAKEN:
        raise ValueError(f'name={name!r:.80} of a {type(method).__name__} cannot be used: give another word')
    if name in taken and wished:
        raise ValueError(f'two methods are named {name!r}: give each its own name')
    number = 2
    base = name
    # Two LoRAs without a name of their own become lora and lora2, in list order, in every run.
    while name in taken:
        name, number = f'{base}{number}', number + 1
    # A dot would split the name in the keys of the state dict.
    if '.' in name:
        raise ValueError(f'method name {name!r} must not contain a dot')
    return name


def build_methods(petl: Sequence[Any], specs: Sequence[BlockSpec]) -> Dict[str, Method]:
    """Build all methods in order, by name.

    Raises:
        ValueError: See :func:`build_method`; also if two methods share a name.
    """
    if isinstance(petl, str) or not isinstance(petl, Iterable):
        raise ValueError(f"petl={petl!r:.80}: give a list of method configs such as [dict(type='LoRA', rank=8)]")
    methods: Dict[str, Method] = {}
    for cfg in petl:
        plain = {k: v for k, v in cfg.items() if k != 'name'} if isinstance(cfg, Mapping) else cfg
        method = build_method(plain, specs)
        methods[_name(method, cfg, methods)] = method
    return methods


def check_methods(methods: Mapping[str, Method], family: Family, backbone: nn.Module) -> None:
    """Refuse combinations that the backbone or the methods do not allow.

    Raises:
        ValueError: Names the method and the point.
    """
    for method in methods.values():
        # By class: a method that overrides a point may need it in some block, whatever its options are.
        lacking = sorted(method.points() - family.points)
        if lacking:
            raise ValueError(
                f'{type(method).__name__} needs the point {lacking[0]!r}, which {type(backbone).__name__} does not '
                f'offer; '
                f'it offers {", ".join(sorted(family.points))}')
        _check_ops(method)
        if not method.points():
            raise ValueError(f'{type(method).__name__} overrides no point, so it would do nothing')
    _check_order(list(methods.values()))
    prompting = [m for m in methods.values() if 'prompts' in m.points()]
    if len(prompting) > 1:
        names = ' and '.join(type(m).__name__ for m in prompting)
        if not all(m.stack for m in prompting):
            raise ValueError(f'{names} both bring prompts; write stack=True in each to put their tokens side by side')
        # Side by side, one method's tokens must be replaced where the other's are: else some would be
        # carried on and some not.
        given = {tuple(i for i in range(len(m.specs)) if m.num_prompts(i)) for m in prompting}
        if len(given) > 1:
            raise ValueError(f'{names} bring prompts before different blocks; give them the same layers and depth')
    sides = [type(m).__name__ for m in methods.values() if 'side' in m.points()]
    if sides and len(methods) > 1:
        raise ValueError(
            f'{sides[0]} replaces the output of the frozen base and cannot be combined with another method')
    if sides:
        # Asked here for all families, as every backbone of OpenMMLab that has the option gives it this
        # name.
        out_type = getattr(backbone, 'out_type', 'cls_token')
        if out_type in ('featmap', 'raw'):
            raise ValueError(f'{sides[0]}: side methods give one vector per image, but the backbone has '
                             f"out_type={out_type!r}: set 'cls_token'")
        try:
            family.check_side(backbone)
        except ValueError as error:
            raise ValueError(f'{sides[0]}: {error}') from None


def _outputs_of(method: Method, i: int) -> Set[str]:
    """Ops of block ``i`` whose outputs a method changes."""
    # What on_qkv touches is not said op by op, so it counts as all three.
    ops = set(method.linear_ops(i)) if method.active('linear', i) else set()
    return ops | (set('qkv') if method.active('qkv', i) else set())


def _check_ops(method: Method) -> None:
    for i in method.layers:
        touched = _outputs_of(method, i) | set(method.input_ops(i) if method.active('input', i) else ())
        lacking = sorted(touched - set(method.specs[i].ops))
        if lacking:
            raise ValueError(f'{type(method).__name__}: block {i} has no op {lacking[0]!r}; '
                             f'it has {", ".join(method.specs[i].ops)}')


def _check_order(methods: Sequence[Method]) -> None:
    """Methods that are defined on the base's own output stand first on their ops."""
    for n, method in enumerate(methods):
        if not method.first_on_op:
            continue
        for before in methods[:n]:
            for i in method.layers:
                shared = sorted(set(method.linear_ops(i)) & _outputs_of(before, i))
                if shared:
                    raise ValueError(
                        f'{type(method).__name__} is defined on the output of the base, but {type(before).__name__} '
                        f'acts on {shared[0]!r} of block {i} before it: put {type(method).__name__} first in the list')


def _specialise(backbone: nn.Module, family: Family, methods: Mapping[str, Method]) -> None:
    # Exactly the known classes: a subclass may have another forward pass, which would be lost.
    for module in family.scope(backbone).modules():
        sited = family.classes.get(type(module))
        if sited is not None:
            # In place: parameters, hooks and the object's identity stay as they are.
            module.__class__ = sited
    if family.embed_class is not None:
        family.embed(backbone).__class__ = family.embed_class
    entry = family.entry(backbone)
    if entry is not None:
        entry.__class__ = family.entry_class
    final = family.final_norm(backbone)
    if issubclass(family.final_class, type(final)):
        final.__class__ = family.final_class
        final.merges_prompts = family.merges_prompts
    # A norm of another class is left as it is; only a method that acts on it must be refused.
    elif final is not None:
        for method in methods.values():
            if 'norm' in method.points():
                raise ValueError(f'{type(method).__name__} acts on the last norm, but a {type(final).__name__} cannot '
                                 'be adapted')


def _check_blocks(backbone: nn.Module, family: Family) -> None:
    """A subclass of a supported backbone may have blocks of its own, about which the family knows nothing.

    Raises:
        ValueError: If a block, or an attention in it, is none of the family's classes.
    """
    cls = type(backbone)
    where = f'{cls.__module__}.{cls.__qualname__}'
    known = ', '.join(c.__name__ for c in family.classes)
    try:
        blocks = list(family.blocks(backbone))
    except AttributeError:
        blocks = []
    if not blocks:
        raise ValueError(f'{where} cannot be adapted: it has no blocks where {family.name} has them')
    for i, block in enumerate(blocks):
        for module in (block, getattr(block, 'attn', None)):
            if module is not None and type(module) not in {*family.classes, *family.classes.values()}:
                # By its path, so that the user finds it in the model.
                path = next(name for name, m in backbone.named_modules() if m is module)
                raise ValueError(f'{where} cannot be adapted: block {i} holds {path}, a {type(module).__name__}, '
                                 f'which is not one of {known}')


def _check_heads(specs: Sequence[BlockSpec]) -> None:
    """Upstream finds out in the first forward pass.

    Raises:
        ValueError: If the heads of a block do not share its width equally.
    """
    for spec in specs:
        if spec.heads < 1 or spec.dim % spec.heads:
            raise ValueError(f'num_heads={spec.heads} does not divide the width {spec.dim} of block {spec.index}: give '
                             'embed_dims and num_heads that divide')


def _move_to(backbone: nn.Module) -> None:
    """Methods to the base's device, and to float64 where the base has it; otherwise they stay float32."""
    base = next(p for n, p in backbone.named_parameters() if not n.startswith('petl.'))

    # Half precision is left out on purpose: small updates would be lost in the rounding of the weights.
    backbone.petl.to(device=base.device, dtype=torch.float64 if base.dtype is torch.float64 else None)


def _check_frames(backbone: nn.Module, family: Family, methods: Mapping[str, Method], frames: Any, pool: Any) -> None:
    """Refuse clips that a backbone for images cannot read frame by frame.

    Raises:
        ValueError: Names the option or the method.
    """
    if pool not in ('after_norm', 'before_norm'):
        raise ValueError(f"frame_pool must be 'after_norm' or 'before_norm', got {pool!r}")
    if not frames:
        if pool == 'before_norm':
            raise ValueError("frame_pool='before_norm' averages the frames of clips: set frames of the backbone")
        return
    positive(frames, 'frames', type(backbone).__name__)
    if type(backbone) not in family.clips:
        raise ValueError(f'frames={frames}: {type(backbone).__name__} cannot read clips frame by frame')
    out_type, inner = backbone.out_type, [i for i in backbone.out_indices if i != len(backbone.layers) - 1]
    if out_type not in ('cls_token', 'avg_featmap') or inner:
        raise ValueError(f"frames={frames}: one feature per frame is averaged, so out_type must be 'cls_token' or "
                         f"'avg_featmap' and out_indices -1; got {out_type!r} and {list(backbone.out_indices)}")
    if pool == 'before_norm' and family.final_norm(backbone) is None:
        raise ValueError("frame_pool='before_norm' needs a last norm, and this backbone has final_norm=False")
    _check_over_time(list(methods.values()), pool)


def _check_over_time(methods: Sequence[Method], pool: str) -> None:
    """Which methods go together over the images of clips.

    Raises:
        ValueError: Names the method.
    """
    for method in methods:
        name, points = type(method).__name__, method.points()
        if 'side' in points and not method.over_time:
            raise ValueError(f'{name} is not defined over the frames of a clip')
        if pool == 'before_norm' and 'pool' in points:
            raise ValueError(f"frame_pool='before_norm' averages all images of a clip before the last norm, but {name} "
                             'says what becomes of their features')
        other = next((type(m).__name__ for m in methods if m is not method and m.over_time), None)
        if {'images', 'pool'} & points and other:
            raise ValueError(f'{name} chooses the images that are read of a clip, so {other}, which acts along its '
                             'frames, cannot stand beside it')


def give_side(backbone: nn.Module, family: Family) -> None:
    """Give a backbone the class for side methods, which is the plain one's equal without such a method.

    Raises:
        ValueError: If side methods are not defined over it.
    """
    family.check_side(backbone)
    if type(backbone) in (*family.sides.values(), *family.forms.values()):
        return  # a form looks for a side method by itself
    if type(backbone) not in family.sides:
        known = ', '.join(c.__name__ for c in family.sides)
        raise ValueError(f'side methods are defined over exactly {known}; {type(backbone).__name__} is none of them')
    # Only exactly known classes have a counterpart, for the reason above.
    backbone.__class__ = family.sides[type(backbone)]


def patterns_of(tune: Any) -> Tuple[str, ...]:
    """The patterns of ``tune``, one or several.

    Raises:
        ValueError: If they are no texts.
    """
    found = [tune] if isinstance(tune, str) else tune
    if not isinstance(found, (list, tuple)) or not all(isinstance(pattern, str) for pattern in found):
        raise ValueError(f"tune={tune!r:.80}: give a list of patterns on parameter names such as ['*bias*']")
    return tuple(found)


def freeze(backbone: nn.Module, tune: Sequence[str]) -> None:
    """Freeze the base except the parameters whose names match a pattern of ``tune``; methods and heads always train.

    Args:
        backbone: Backbone, with or without ``petl``.
        tune: Shell-style patterns on parameter names: ``[]`` linear probe, ``['*']`` full, ``['*bias*']`` BitFit,
            ``['*ln1*', '*ln2*']`` norms, ``['layers.1[01].*']`` the last two blocks.

    Raises:
        ValueError: If a pattern matches nothing.
    """
    tune = patterns_of(tune)
    # timm keeps the head inside the model; elsewhere it stands outside the backbone and is never frozen
    # here.
    family = family_of(backbone)[1]
    # Patterns mean parameters of the base: '*' must not be satisfied by a method's.
    names = [n for n, _ in backbone.named_parameters() if not n.startswith('petl.')]
    for pattern in tune:
        if not any(fnmatchcase(n, pattern) for n in names):
            raise ValueError(f'tune={pattern!r} matches no parameter of {type(backbone).__name__}' +
                             nearest(pattern, names))
    for name, parameter in backbone.named_parameters():
        always = name.startswith('petl.') or family.in_head(name)
        parameter.requires_grad = always or any(fnmatchcase(name, p) for p in tune)
    if isinstance(getattr(backbone, 'petl', None), PETL):
        match_types(backbone)


def attach(backbone: nn.Module,
           petl: Sequence[Any] = (),
           tune: Sequence[str] = (),
           trunk: str = 'eval',
           with_cp: Optional[bool] = None,
           memory: str = 'standard',
           frames: int = 0,
           frame_pool: str = 'after_norm',
           base_dtype: Any = None) -> nn.Module:
    """Give a backbone its methods, in place.

    Args:
        backbone: One of the supported upstream backbones (or a subclass that keeps its blocks).
        petl: Method configs such as ``dict(type='LoRA', rank=8)``, or built methods; order matters, see the waist's
            rules.
        tune: Patterns of base parameters that also train, see :func:`freeze`.
        trunk: 'eval': dropout and drop-path of the base stay off while training; 'train': they follow the model.
        with_cp: Recompute each block in the backward pass (non-reentrant); None keeps the backbone's own setting.
        memory: 'standard', or 'light': norms, activations, hidden states of adapters and the attention's residual are
            computed again in the backward pass, which repeats no product of the base but the attention's output;
            'lightest': also the first product of the feed-forward network. Same gradients; ``with_cp`` goes further and
            repeats the whole block.
        frames: For backbones for images: read clips (B, 3, T, H, W) of this many frames, each an image, and give the
            mean of their features (B, C). Methods may act over time.
        frame_pool: Where the frames are averaged: 'after_norm' or 'before_norm', the last norm.
        base_dtype: 'bf16', 'int8' or 'nf4' stores frozen weights of products in fewer bits, see
            :mod:`mmpetl.backbones.base_dtype`.

    Returns:
        The same object; its base is frozen, its methods live in ``backbone.petl``.

    Raises:
        ValueError: One line that names the option, method, point or pattern that does not fit.
    """
    if trunk not in ('eval', 'train'):
        raise ValueError(f"trunk must be 'eval' or 'train', got {trunk!r}")
    if with_cp is not None and not isinstance(with_cp, bool):
        raise ValueError(f'with_cp={with_cp!r:.80}: give True, False or None')
    patterns, dtype = patterns_of(tune), parse_base_dtype(base_dtype)
    if not isinstance(memory, str) or memory not in LEVELS:
        raise ValueError(f'unknown memory setting {memory!r}' + nearest(memory, LEVELS))
    if isinstance(getattr(backbone, 'petl', None), PETL):
        raise ValueError(
            f'{type(backbone).__name__} already has methods attached; build a new backbone, or take mmpetl.AdapterBank '
            'for several adapters on one base')
    family_name, family = family_of(backbone)
    _check_blocks(backbone, family)
    family.check(backbone)
    specs = family.specs(backbone)
    _check_heads(specs)
    if frames:
        specs = [replace(spec, frames=frames) for spec in specs]
    # Before anything is changed: a refusal leaves the model as it came.
    methods = build_methods([petl] if isinstance(petl, Mapping) else petl, specs)
    check_methods(methods, family, backbone)
    _check_frames(backbone, family, methods, frames, frame_pool)
    _specialise(backbone, family, methods)
    if frames:
        backbone.__class__ = family.clips[type(backbone)]
    if any('side' in m.points() for m in methods.values()):
        give_side(backbone, family)
    for block, spec in zip(family.blocks(backbone), specs):
        block.spec = spec
        # Upstream's own checkpointing sits in the forward pass that is replaced, so its setting is taken
        # over.
        block.with_cp = bool(getattr(block, 'with_cp', False) if with_cp is None else with_cp)
        block.recompute_level = LEVELS[memory]
    _make_drop_path_traceable(family.blocks(backbone))
    # Last of the children: train() of the backbone reaches it after all others, see PETL.train.
    backbone.petl = PETL(backbone, family_name, {}, trunk)
    backbone.petl.frame_pool = frame_pool
    backbone.petl.tune = patterns
    _put_in(backbone, methods, petl)
    # After the methods are in: from now on every way in of weights passes these hooks.
    install_load_hook(backbone)
    watch(backbone)
    if dtype is not None:
        store(backbone, dtype)
        backbone.petl.loaded()  # starts that depend on the weights follow those that are there
    return backbone


def add_methods(backbone: nn.Module, petl: Sequence[Any]) -> None:
    """Give methods to a backbone that is attached and holds none.

    Args:
        backbone: What :func:`attach` returned.
        petl: Method configs without side methods.

    Raises:
        ValueError: As for :func:`attach`; also if the backbone holds methods already.
    """
    if len(backbone.petl):
        raise ValueError(f'{type(backbone).__name__} already holds {", ".join(backbone.petl)}')
    methods = build_methods(petl, [block.spec for block in backbone.petl.blocks])
    check_methods(methods, backbone.petl.family, backbone)
    _put_in(backbone, methods, petl)


def _put_in(backbone: nn.Module, methods: Dict[str, Method], petl: Any) -> None:
    backbone.petl.update(methods)
    # Kept beside the methods, because adapter files need what was asked for, by registered name.
    backbone.petl.configs = {n: config_of(cfg, method) for (n, method), cfg in zip(methods.items(), _as_list(petl))}
    for module in backbone.petl.modules():
        module._is_hf_initialized = True  # the initialisers of transformers must leave methods alone
    _move_to(backbone)
    backbone.petl.refresh()
    backbone.petl.loaded()
    # After the methods are in, as they bring parameters that must train.
    freeze(backbone, backbone.petl.tune)
    backbone.petl.train(backbone.training)


def _as_list(petl: Any) -> List[Any]:
    return [petl] if isinstance(petl, Mapping) else list(petl)


def config_of(cfg: Any, method: Method) -> Dict[str, Any]:
    """The config of a built method under its registered name, by which adapter files find it again."""
    name = next((n for n, cls in METHODS.module_dict.items() if cls is type(method)), type(method).__name__)
    return {**(cfg if isinstance(cfg, Mapping) else {}), 'type': name}


def _make_drop_path_traceable(blocks: Sequence[nn.Module]) -> None:
    """mmpretrain's drop-path rates are numpy scalars, which break a compiled graph at every block."""
    for block in blocks:
        # Upstream drops paths at other places too (BEiT's network), so all of them are looked at.
        for module in block.modules():
            if isinstance(getattr(module, 'drop_prob', None), Real):
                module.drop_prob = float(module.drop_prob)
