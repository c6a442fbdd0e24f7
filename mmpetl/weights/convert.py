"""From any published weight file to the names of the backbones.

Every format maps to the common form of its family, every architecture takes the common forms it can use::

    jax-vit, timm-vit, dinov2-registers, hf-vit, openai-clip, hf-clip, mmpretrain-vit -> image ViT -> vit, clip,
    videomae (inflated) videomae, hf-videomae, mmaction-videomae                                          -> VideoMAE
    -> videomae swin, timm-swin, hf-swin, mmpretrain-swin                                         -> Swin      -> swin,
    video_swin (inflated) video-swin (original, mmaction2, V-PETL)                                          -> Video
    Swin -> video_swin
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from . import clip, swin, video_swin, videomae, vit
from .rename import Ignored, Rules, State
from .report import Report, shorten

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Format:
    """A published naming of weights.

    Attributes:
        family (str): Its common form: 'vit', 'videomae', 'swin' or 'video_swin'.
        anchor (str): A key that every such file has, under some prefix; it marks where the backbone begins.
        fits (Callable): Whether a state dict, prefix removed, that has the anchor is of this format.
        read (Callable): Prefix-free state dict -> common form.
        outer (tuple): Rules for wanted keys outside the prefix (pattern, name as if inside).
        outer_ignored (tuple): Reasons for other keys outside the prefix.
    """
    family: str
    anchor: str
    fits: Callable[[State], bool]
    read: Callable[[State, Report], State]
    outer: Rules = ()
    outer_ignored: Ignored = ()


def _has(state: State, start: str) -> bool:
    return any(key.startswith(start) for key in state)


def _merges_late(state: State) -> bool:
    """timm opens a stage with patch merging: the first stage has none."""
    return _has(state, 'layers.1.downsample.') and not _has(state, 'layers.0.downsample.')


_PROJ, _PROJECTION = 'patch_embed.proj.weight', 'patch_embed.projection.weight'
_HF = 'embeddings.patch_embeddings.projection.weight'
_CLS_HEAD: Rules = ((r'cls_head\.fc_cls\.(weight|bias)', r'head.\1'),)

FORMATS: dict[str, Format] = {
    'jax-vit':
    Format('vit', 'embedding/kernel', lambda s: True, vit.from_jax),
    'openai-clip':
    Format('vit', 'class_embedding', lambda s: 'conv1.weight' in s, clip.from_openai, outer_ignored=clip.OPENAI_OUTER),
    'hf-clip':
    Format(
        'vit',
        'embeddings.patch_embedding.weight',
        lambda s: _has(s, 'pre_lay'),
        clip.from_hf,
        outer_ignored=clip.HF_OUTER),
    'dinov2-registers':
    Format('vit', _PROJ, lambda s: False, vit.from_timm),
    'hf-dinov2-registers':
    Format('vit', _HF, lambda s: False, vit.from_hf),
    'timm-vit':
    Format('vit', _PROJ, lambda s: s[_PROJ].ndim == 4 and _has(s, 'blocks.'), vit.from_timm),
    'hf-vit':
    Format(
        'vit',
        _HF,
        lambda s: s[_HF].ndim == 4 and 'embeddings.cls_token' in s,
        vit.from_hf,
        outer=((r'classifier\.(weight|bias)', r'classifier.\1'), )),
    'mmpretrain-vit':
    Format('vit', _PROJECTION, lambda s: s[_PROJECTION].ndim == 4 and _has(s, 'layers.'), vit.from_mmpretrain),
    'videomae':
    Format('videomae', _PROJ, lambda s: s[_PROJ].ndim == 5 and _has(s, 'blocks.'), videomae.from_original),
    'hf-videomae':
    Format(
        'videomae',
        _HF,
        lambda s: s[_HF].ndim == 5,
        videomae.from_hf,
        outer=((r'fc_norm\.(weight|bias)', r'fc_norm.\1'), (r'classifier\.(weight|bias)', r'head.\1'))),
    'mmaction-videomae':
    Format('videomae', _PROJECTION, lambda s: s[_PROJECTION].ndim == 5, videomae.from_mmaction, outer=()),
    'timm-swin':
    Format('swin', _PROJ, lambda s: s[_PROJ].ndim == 4 and _has(s, 'layers.') and _merges_late(s), swin.from_timm),
    'swin':
    Format('swin', _PROJ, lambda s: s[_PROJ].ndim == 4 and _has(s, 'layers.'), swin.from_original),
    'hf-swin':
    Format('swin', _HF, lambda s: s[_HF].ndim == 4 and _has(s, 'encoder.layers.0.blocks.'), swin.from_hf),
    'mmpretrain-swin':
    Format('swin', _PROJECTION, lambda s: _has(s, 'stages.'), swin.from_mmpretrain),
    'video-swin':
    Format(
        'video_swin',
        _PROJ,
        lambda s: s[_PROJ].ndim == 5 and _has(s, 'layers.'),
        video_swin.from_video,
        outer=_CLS_HEAD),
}
#: Other names under which people know a format.
ALIASES = {
    'mae': 'timm-vit',
    'mocov3': 'timm-vit',
    'deit': 'timm-vit',
    'dinov2': 'timm-vit',
    'open-clip': 'openai-clip',
    'hf-dinov2': 'hf-vit',
    'hf-mae': 'hf-vit',
    'swin-22k': 'swin',
    'mmaction-video-swin': 'video-swin',
    'v-petl': 'video-swin',
    'npz': 'jax-vit',
}


@dataclass(frozen=True)
class Arch:
    """A target.

    Attributes:
        families (tuple): Common forms that it takes.
        adapt (Callable): (state, shapes, grid, report) -> state under the target's names.
        initial (Callable): shapes -> target keys that files may lack, with reasons.
        spare (tuple): Keys that the target may lack, with reasons.
    """
    families: tuple[str, ...]
    adapt: Callable[[State, Shapes, tuple[int, ...] | None, Report], State]
    initial: Callable[[Shapes], Ignored]
    spare: Ignored


ARCHS: dict[str, Arch] = {
    'vit': Arch(('vit',), vit.to_target, lambda shapes: vit.INITIAL, vit.SPARE),
    'clip': Arch(('vit',), vit.to_target, lambda shapes: vit.INITIAL, vit.SPARE),
    'videomae': Arch(('videomae', 'vit'), videomae.to_target, lambda shapes: videomae.INITIAL, videomae.SPARE),
    'swin': Arch(('swin',), swin.to_target, swin.initial_keys, swin.SPARE),
    'video_swin': Arch(('video_swin', 'swin'), video_swin.to_target, swin.initial_keys, swin.SPARE),
}


def detect(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Name the published format of a state dict.

    Raises:
        ValueError: None fits; the message names the nearest one.
    """
    return _find(state_dict)[0]


def _find(state: Mapping[str, torch.Tensor], name: str | None = None) -> tuple[str, str]:
    """Format and prefix of the backbone; with ``name`` only that format is looked for."""
    if name is not None:
        name = ALIASES.get(name, name)
        if name not in FORMATS:
            import difflib
            near = difflib.get_close_matches(name, [*FORMATS, *ALIASES], n=3, cutoff=0.3)
            raise ValueError(f'no weight format {name!r}; nearest: {", ".join(near)}; known: {", ".join(FORMATS)}')
        prefixes = _prefixes(state, FORMATS[name].anchor)
        if prefixes:
            return name, prefixes[0]
        raise ValueError(f'not a {name} file: no key ends with {FORMATS[name].anchor!r}; {_nearest(state)}')
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
    found = [prefix for prefix in found if not prefix or prefix[-1] in './']
    return sorted(
        found, key=lambda p: ('momentum' in p or 'student' in p or 'ema' in p.split('.') or 'decoder' in p, len(p), p))


def _inside(state: Mapping[str, torch.Tensor], prefix: str) -> State:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def _nearest(state: Mapping[str, torch.Tensor]) -> str:
    """Say which format shares most words with the keys."""
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
    tables: dict[str, Rules] = {
        'jax-vit': vit.JAX, 'openai-clip': clip.OPENAI, 'hf-clip': clip.HF, 'timm-vit': vit.TIMM, 'hf-vit': vit.HF,
        'videomae': videomae.ORIGINAL, 'hf-videomae': videomae.HF, 'swin': swin.ORIGINAL, 'hf-swin': swin.HF,
    }
    return {name: {word for pattern, _ in rules for word in re.findall(r'[A-Za-z_]{3,}', pattern)} - {'weight', 'bias'}
            for name, rules in tables.items()}


def convert(state_dict: Mapping[str, torch.Tensor], target_shapes: Shapes | None, arch: str, as_name: str | None = None,
            grid: tuple[int, ...] | None = None) -> tuple[State, Report]:
    """Map weights of any published format to one backbone.

    Args:
        state_dict (Mapping): Tensors under their published names, any prefix; other entries are left aside.
        target_shapes (dict | None): ``{key: shape}`` of the backbone's own state dict. Keys below ``petl.`` are not
            part of the trunk and are ignored. None: keep the shapes of the file.
        arch (str): 'vit', 'clip', 'swin', 'videomae' or 'video_swin'.
        as_name (str | None): Format of ``state_dict``; None finds out.
        grid (tuple | None): Target grid of patches, (H, W) or (T, H, W); needed where it is not square or is inflated
            to another size.

    Returns:
        tuple: State dict with the backbone's key names (no prefix, half precision becomes single) and the match report.

    Raises:
        ValueError: Unknown format or architecture, a trunk key that the file lacks, a key of the file that nothing
            explains, or a shape that cannot be brought to the target's.
    """
    if arch not in ARCHS:
        raise ValueError(f'no architecture {arch!r}; known: {", ".join(ARCHS)}')
    tensors = {key: _single(value) for key, value in state_dict.items() if isinstance(value, torch.Tensor)}
    if not tensors and state_dict:
        raise ValueError(
            f'no tensor among the entries {shorten([str(key) for key in state_dict])}; give the state dict inside')
    name, prefix = _find(tensors, as_name)
    target, known = ARCHS[arch], FORMATS[name]
    if known.family not in target.families:
        fitting = [other for other, entry in FORMATS.items() if entry.family in target.families]
        raise ValueError(f'{name} weights do not fit the architecture {arch!r}, which takes {", ".join(fitting)}')
    report = Report(name, arch)
    inside = _gather(tensors, prefix, known, report)
    shapes = {key: tuple(shape) for key, shape in (target_shapes or {}).items() if not key.startswith('petl.')}
    adapted = target.adapt(known.read(inside, report), shapes, grid, report)
    result = _match(adapted, shapes, report, target.initial(shapes), target.spare)
    _complain(report, name)
    return result, report


def _single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _gather(tensors: State, prefix: str, known: Format, report: Report) -> State:
    """Keys of the backbone without their prefix; every other key is put down with its reason."""
    inside = _inside(tensors, prefix)
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            continue
        rule = next(((match, new) for pattern, new in known.outer if (match := re.fullmatch(pattern, key))), None)
        if rule is not None:
            inside.setdefault(rule[0].expand(rule[1]), tensor)
            continue
        if key.endswith('visual_projection.weight'):
            report.extras['proj'] = tensor.t().contiguous()
            report.left_out[key] = 'projection to the space shared with text, not part of the trunk'
            continue
        reason = next((reason for pattern, reason in known.outer_ignored if re.fullmatch(pattern, key)), None)
        report.left_out[key] = reason or f'outside {prefix}*, where the backbone is'
    petl = [key for key in inside if key.startswith('petl.')]
    for key in petl:
        report.left_out[key] = 'adapter, not part of the trunk'
        del inside[key]
    return inside


def _match(state: State, shapes: Shapes, report: Report, initial: Ignored, spare: Ignored) -> State:
    """Compare adapted tensors with the target; fill the report.

    Raises:
        ValueError: A shape differs.
    """
    shapes = shapes or {key: tuple(tensor.shape) for key, tensor in state.items()}
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
