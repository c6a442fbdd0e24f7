# SPDX-License-Identifier: Apache-2.0
"""From any published weight file to the names of the backbones.

Every format maps to the common form of its family, and every architecture takes the common forms that it can use: its
own, and that of an image family where it is a video backbone (inflated in time). See :mod:`mmpetl.weights.archs`.
"""

import re
from collections import Counter
from collections.abc import Mapping

import torch

from .arch import Format, Shapes
from .archs import ALIASES, ARCHS, FORMATS
from .match_report import Report, shorten
from .rename import Ignored, State


def detect(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Name the published format of a state dict.

    Raises:
        ValueError: None fits; the message names the nearest one.
    """
    return _find(state_dict)[0]


def _find(state: Mapping[str, torch.Tensor], name: str | None = None) -> tuple[str, str]:
    """Format and prefix of the backbone; with ``name`` only that format is looked for."""
    if name is not None:
        # People know files by their training (mae, deit), formats are names of key tables.
        name = ALIASES.get(name, name)
        if name not in FORMATS:
            import difflib
            near = difflib.get_close_matches(name, [*FORMATS, *ALIASES], n=3, cutoff=0.3)
            raise ValueError(f'no weight format {name!r}; nearest: {", ".join(near)}; known: {", ".join(FORMATS)}')
        prefixes = _prefixes(state, FORMATS[name].anchor)
        if prefixes:
            return name, prefixes[0]
        raise ValueError(f'not a {name} file: no key ends with {FORMATS[name].anchor!r}; {_nearest(state)}; name '
                         'another format, or none')
    # In order: a later format may fit files of an earlier one.
    for name, known in FORMATS.items():
        for prefix in _prefixes(state, known.anchor):
            if known.fits(_inside(state, prefix)):
                return name, prefix
    raise ValueError(f'no known weight format: {_nearest(state)}; its first keys: {shorten(sorted(state), 3)}')


def _prefixes(state: Mapping[str, torch.Tensor], anchor: str) -> list[str]:
    """Prefixes under which the anchor occurs, the one to use first.

    Self-supervised files hold two encoders: the trained one of MoCo (``base_encoder``) and the averaged one of DINO
    (``teacher``) are those that their authors evaluate.
    """
    found = [key.removesuffix(anchor) for key in state if key.endswith(anchor)]
    # 'my_cls_token' ends with the anchor 'cls_token', but is another word.
    found = [prefix for prefix in found if not prefix or prefix[-1] in './']
    return sorted(
        found, key=lambda p: ('momentum' in p or 'student' in p or 'ema' in p.split('.') or 'decoder' in p, len(p), p))


def _inside(state: Mapping[str, torch.Tensor], prefix: str) -> State:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def _nearest(state: Mapping[str, torch.Tensor]) -> str:
    """Say which format shares most words with the keys."""
    # For a message only: which published names an unknown file comes nearest to.
    words = Counter(word for key in state for word in re.split(r'[./]', key) if not word.isdigit())
    scores = {
        name: sum(words[word] > 0 for word in vocabulary) / len(vocabulary)
        for name, vocabulary in _vocabulary().items()
    }
    best = max(scores, key=lambda name: scores[name])
    if not scores[best]:
        return f'nothing in it looks like weights of {", ".join(FORMATS)}'
    return f'nearest is {best!r} ({scores[best]:.0%} of its words, but no key ends with {FORMATS[best].anchor!r})'


def _vocabulary() -> dict[str, set[str]]:
    return {name: {word for pattern, _ in known.words for word in re.findall(r'[A-Za-z_]{3,}', pattern)} -
            {'weight', 'bias'} for name, known in FORMATS.items() if known.words}


def convert(state_dict: Mapping[str, torch.Tensor], target_shapes: Shapes | None, arch: str, as_name: str | None = None,
            grid: tuple[int, ...] | None = None) -> tuple[State, Report]:
    """Map weights of any published format to one backbone.

    Args:
        state_dict (Mapping): Tensors under their published names, any prefix; other entries are left aside.
        target_shapes (dict | None): ``{key: shape}`` of the backbone's own state dict. Keys below ``petl.`` are not
            part of the base and are ignored. None: keep the shapes of the file.
        arch (str): One of :data:`mmpetl.weights.archs.ARCHS`.
        as_name (str | None): Format of ``state_dict``; None finds out.
        grid (tuple | None): Target grid of patches, (H, W) or (T, H, W); needed where it is not square or is inflated
            to another size.

    Returns:
        tuple: State dict with the backbone's key names (no prefix, half precision becomes single) and the match report.

    Raises:
        ValueError: Unknown format or architecture, weights made for another one, a backbone key that the file lacks, a
            key of the file that nothing explains, or a shape that cannot be brought to the target's.
    """
    if arch not in ARCHS:
        raise ValueError(f'no architecture {arch!r}; known: {", ".join(ARCHS)}')
    # Optimizer states and numbers may stand beside the weights.
    tensors = {key: _single(value) for key, value in state_dict.items() if isinstance(value, torch.Tensor)}
    if not tensors and state_dict:
        raise ValueError(
            f'no tensor among the entries {shorten([str(key) for key in state_dict])}; give the state dict inside')
    name, prefix = _find(tensors, as_name)
    target, known = ARCHS[arch], FORMATS[name]
    if known.family not in target.families:
        fitting = [other for other, entry in FORMATS.items() if entry.family in target.families]
        raise ValueError(f'{name} weights do not fit the architecture {arch!r}, which takes {", ".join(fitting)}')
    # Beside a backbone's own keys these are compared below; without them nothing else would tell.
    natural = arch if target_shapes else known.made_for(tensors)
    if natural != arch and ARCHS[natural].families[0] == target.families[0]:
        raise ValueError(f'these {name} weights are made for the architecture {natural!r}, not for {arch!r}: give '
                         f'{natural!r}, or none')
    report = Report(name, arch)
    inside = _gather(tensors, prefix, known, report)
    # A backbone's state dict may hold methods, which no published file knows.
    shapes = {key: tuple(shape) for key, shape in (target_shapes or {}).items() if not key.startswith('petl.')}
    # Two steps: from the published names to the family's common form, from there to the target's names
    # and sizes.
    adapted = target.adapt(known.read(inside, report), shapes, grid, report)
    result = _match(adapted, shapes, report, target.initial(shapes), target.spare)
    # At the end, so that one message names all keys.
    _complain(report, name)
    return result, report


def _single(tensor: torch.Tensor) -> torch.Tensor:
    # Half precision is how files are kept small, not how bases are kept here.
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _gather(tensors: State, prefix: str, known: Format, report: Report) -> State:
    """Keys of the backbone without their prefix; every other key is put down with its reason."""
    inside = _inside(tensors, prefix)
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            continue
        rule = next(((match, new) for pattern, new in known.outer if (match := re.fullmatch(pattern, key))), None)
        if rule is not None:
            # setdefault: what stands inside the prefix wins.
            inside.setdefault(rule[0].expand(rule[1]), tensor)
            continue
        # Of use beside the backbone (zero-shot, CLIP's head), so it is kept as an extra.
        if key.endswith('visual_projection.weight'):
            report.extras['proj'] = tensor.t().contiguous()
            report.left_out[key] = 'projection to the space shared with text, not part of the backbone'
            continue
        reason = next((reason for pattern, reason in known.outer_ignored if re.fullmatch(pattern, key)), None)
        report.left_out[key] = reason or f'outside {prefix}*, where the backbone is'
    petl = [key for key in inside if key.startswith('petl.')]
    for key in petl:
        report.left_out[key] = 'adapter, not part of the backbone'
        del inside[key]
    return inside


def _match(state: State, shapes: Shapes, report: Report, initial: Ignored, spare: Ignored) -> State:
    """Compare adapted tensors with the target; fill the report.

    Raises:
        ValueError: A shape differs.
    """
    shapes = shapes or {key: tuple(tensor.shape) for key, tensor in state.items()}
    # Each key is counted once, under what happened to it.
    touched = {key for key, *_ in report.reshaped} | set(report.generated)
    result: State = {}
    for key, shape in shapes.items():
        if key not in state:
            reason = next((reason for pattern, reason in initial if re.fullmatch(pattern, key)), None)
            if reason is None:
                report.missing.append(key)
            else:
                report.initial[key] = reason
            continue
        if tuple(state[key].shape) != shape:
            raise ValueError(
                f'{key}: shape {tuple(state[key].shape)} in the {report.source} file, {shape} in the backbone; '
                'check arch, patch_size and img_size of the config')
        result[key] = state[key]
        if key not in touched:
            report.loaded.append(key)
    # What the file has and the target does not is a fault, unless a reason for it is known.
    for key in state.keys() - shapes.keys():
        reason = next((reason for pattern, reason in spare if re.fullmatch(pattern, key)), None)
        if reason is None:
            report.unexpected.append(key)
        else:
            report.left_out[key] = reason
    report.unexpected.sort()
    return result


def _complain(report: Report, name: str) -> None:
    """Turn missing and unexplained keys into one line.

    Raises:
        ValueError: If there are any.
    """
    if not report.missing and not report.unexpected:
        return
    parts = [f'{len(keys)} keys {word} ({shorten(keys)})' for word, keys in
             (('missing', report.missing), ('unexplained', report.unexpected)) if keys]
    # The first word that occurs among the keys names the likeliest cause.
    hints = [hint for word, hint in _HINTS if any(word in key for key in [*report.missing, *report.unexpected])]
    raise ValueError(f'{name} weights do not fit the {report.arch!r} backbone: {", ".join(parts)}' +
                     (f'; {hints[0]}' if hints else ''))


_HINTS = (
    ('pre_norm', 'a norm before the blocks belongs to CLIP: set pre_norm=True exactly for CLIP weights'),
    ('gamma', 'layer scale: set layer_scale_init_value=0 for weights without it'),
    ('dist_token', 'distilled models have a second class token, which this backbone has not'),
    ('layers.', 'check the depth in arch'),
    ('blocks.', 'check the depth in arch'),
    ('stages.', 'check the depths in arch'),
)
