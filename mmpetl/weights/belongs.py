# SPDX-License-Identifier: Apache-2.0
"""Whether an adapter belongs to what it is put on: the one place that decides.

The header of an adapter says what its tensors were trained with. Every way of loading describes what it has (a model, a
data set, a pipeline: what it knows) and asks :func:`check_belongs`. Scores off by a quarter, or classes in another
order, are no error of any library; here they are.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .adapter_file import base_name

#: What can be told of a place where an adapter is loaded.
FACTS = ('methods', 'defaults', 'costs_only', 'tune', 'backbone', 'heads', 'dims', 'grid', 'window', 'output', 'parts',
         'classes', 'normalisation', 'pipeline', 'fingerprint')
#: What an adapter cannot be put on at all, whatever the reason.
_FIRM = ('methods', 'base', 'backbone', 'dims', 'num_classes')
#: Keys of transforms that change no pixel.
_SILENT = ('meta_keys', 'algorithm_keys', 'backend_args', 'io_backend', 'num_threads', 'decoder', 'file_client_args',
           'ignore_empty')
#: Options of methods that the tensors say themselves.
_IN_TENSORS = ('kept', )
_WHAT = {'heads': 'attention heads per block', 'dims': 'widths of the blocks', 'grid': 'the grid of tokens',
         'window': 'the attention windows', 'output': 'the output of the backbone'}

Difference = tuple[str, str]


def plain(value: Any) -> Any:
    """A config value as JSON types: tuples become lists, keys texts, classes their names."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, '__name__', str(value))


def check_belongs(header: Mapping[str, Any], here: Mapping[str, Any], source: str = '',
                  force: bool = False) -> list[str]:
    """Compare an adapter's header with the place where it is loaded.

    Args:
        header: Header of the adapter.
        here: What is known of the place, see :data:`FACTS`; what is unknown on one of the two sides is not compared.
        source: Name of the file, for messages.
        force: Take the adapter in spite of differences that change scores but not names and shapes.

    Returns:
        The differences that ``force`` passed over, one line each.

    Raises:
        ValueError: The first difference, in one line that names both values.
    """
    passed = []
    # Firm ones first: the line must not offer force where a later one forbids it.
    for kind, text in sorted(_differences(header, here), key=lambda one: one[0] not in _FIRM):
        line = f'{source or "the adapter"} does not belong here: {text}'
        if kind in _FIRM or not force:
            more = '' if kind in _FIRM else ', or take it all the same by --force (force=True in Python)'
            raise ValueError(f'{line}; use the config with which it was trained{more}')
        passed.append(line)
    return passed


def _differences(header: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Difference]:
    model = header.get('model') or {}
    if 'backbone' in here and here['backbone'] != header['backbone']:
        yield 'backbone', f'the adapter was trained on a {header["backbone"]}, the model is a {here["backbone"]}'
    if 'methods' in here:
        yield from _methods(header['methods'], here)
    if 'tune' in here and set(here['tune']) != set(header['tune']):
        yield 'tune', f'tune is {list(header["tune"])} in the adapter and {list(here["tune"])} here'
    for key, what in _WHAT.items():
        theirs, ours = model.get(key), plain(here.get(key))
        # Files of earlier versions do not say everything; what nobody knows cannot differ.
        if theirs is not None and ours is not None and theirs != ours:
            yield key, f'{what}: {_short(theirs)} in the adapter and {_short(ours)} here'
    yield from _parts(model.get('parts') or {}, here.get('parts') or {})
    yield from _classes(header.get('classes'), here.get('classes'))
    yield from _normalisation(normalisation_in(header), here.get('normalisation'))
    yield from _pipeline((header.get('preprocessing') or {}).get('pipeline'), here.get('pipeline'))
    yield from _base(header.get('base') or {}, here)


def _methods(theirs: Sequence[Mapping[str, Any]], here: Mapping[str, Any]) -> Iterator[Difference]:
    ours: Sequence[Mapping[str, Any]] = here['methods']
    defaults = here.get('defaults') or [{}] * len(ours)
    free = here.get('costs_only') or [()] * len(ours)
    # mmpetl.LoRA and LoRA are one.
    names = [[str(m.get('type')).split('.')[-1] for m in side] for side in (theirs, ours)]
    if names[0] != names[1]:
        held, has = (', '.join(side) or 'no method' for side in names)
        yield 'methods', f'the adapter holds {held}, the model has {has}'
        return
    for name, their, our, default, costs in zip(names[0], theirs, ours, defaults, free):
        # files of earlier versions name only what was not left to its default
        full = {**plain(default), **{k: v for k, v in their.items() if k != 'type'}}
        for key in dict.fromkeys([*full, *our]):
            # Names of methods show in the keys of the tensors, which are compared when they are loaded.
            if key in ('type', *_IN_TENSORS, *costs) or (key == 'name' and key not in their):
                continue
            if full.get(key) != plain(our.get(key)):
                yield 'arguments', (f'{name} has {key}={_short(full.get(key))} in the adapter and '
                                    f'{key}={_short(our.get(key))} here')


def _parts(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Difference]:
    """Head and neck: their types and plain options."""
    if not theirs or not ours:
        return
    for part in dict.fromkeys([*theirs, *ours]):
        if part not in theirs or part not in ours:
            kind = (theirs if part in theirs else ours)[part]['type']
            yield 'parts', f'{part} is a {kind} {"in the adapter" if part in theirs else "here"} and missing ' + (
                'here' if part in theirs else 'in the adapter')
            continue
        for key in (k for k in theirs[part] if k in ours[part]):
            if theirs[part][key] != plain(ours[part][key]):
                text = (f'{part} has {key}={_short(theirs[part][key])} in the adapter and '
                        f'{key}={_short(ours[part][key])} here')
                mend = ': set the number of classes of the head to that of the adapter'
                yield ('num_classes', text + mend) if key == 'num_classes' else ('parts', text)


def _classes(theirs: Any, ours: Any) -> Iterator[Difference]:
    if not theirs or not ours or list(theirs) == list(ours):
        return
    if len(theirs) != len(ours):
        odd = sorted(set(map(str, theirs)) ^ set(map(str, ours)))
        yield 'classes', (f'{len(theirs)} classes in the adapter and {len(ours)} here' +
                          (f'; {_short(odd[0])} is in one of them only' if odd else ''))
        return
    # The first class that differs: names of a thousand classes would be no message.
    at = next(i for i, (a, b) in enumerate(zip(theirs, ours)) if a != b)
    order = ', the same names in another order' if sorted(map(str, theirs)) == sorted(map(str, ours)) else ''
    yield 'classes', f'class {at} is {_short(theirs[at])} in the adapter and {_short(ours[at])} here{order}'


def normalisation_of(config: Any) -> dict[str, Any] | None:
    """Mean, standard deviation (of pixels 0 to 255) and channel order of a data preprocessor's config."""
    if not isinstance(config, Mapping) or ('mean' not in config and 'std' not in config):
        return None
    return dict(mean=plain(config.get('mean')), std=plain(config.get('std')), to_rgb=bool(config.get('to_rgb', False)))


def normalisation_in(header: Mapping[str, Any]) -> Any:
    """The normalisation with which an adapter was trained, or None."""
    given = (header.get('model') or {}).get('normalisation')
    return given or normalisation_of((header.get('preprocessing') or {}).get('data_preprocessor'))


def _normalisation(theirs: Any, ours: Any) -> Iterator[Difference]:
    if not theirs or not ours:
        return
    for key in ('mean', 'std', 'to_rgb'):
        a, b = theirs.get(key), ours.get(key)
        if not _close(a, b):
            yield 'normalisation', f'normalisation has {key}={_short(a)} in the adapter and {key}={_short(b)} here'


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_close(x, y) for x, y in zip(a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        # One config says 123.675, another 0.485 * 255.
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6)
    return bool(a == b)


def pipeline_of(transforms: Any) -> list[dict[str, Any]] | None:
    """What a test pipeline does to pixels, comparable: without scopes of types and without keys that change none; None
    where it cannot be compared."""
    if not isinstance(transforms, (list, tuple)) or not all(isinstance(t, Mapping) for t in transforms):
        return None
    steps = [{k: v for k, v in plain(t).items() if k not in _SILENT} for t in transforms]
    for step in steps:
        step['type'] = str(step.get('type')).split('.')[-1]
    # Its result is a mean over several pipelines, which a list of steps cannot say.
    if any(step['type'] == 'TestTimeAug' for step in steps):
        return None
    # Packing wraps pixels and changes none.
    return [step for step in steps if not step['type'].startswith('Pack')]


def _pipeline(theirs: Any, ours: Any) -> Iterator[Difference]:
    a, b = pipeline_of(theirs), pipeline_of(ours)
    if not a or not b or a == b:
        return
    for number, (x, y) in enumerate(zip(a, b)):
        if x['type'] != y['type']:
            yield 'pipeline', f'step {number} of the test pipeline is {x["type"]} in the adapter and {y["type"]} here'
            return
        for key in dict.fromkeys([*x, *y]):
            if x.get(key) != y.get(key):
                yield 'pipeline', (f'step {number} of the test pipeline, {x["type"]}, has {key}={_short(x.get(key))} '
                                   f'in the adapter and {key}={_short(y.get(key))} here')
                return
    if len(a) != len(b):
        yield 'pipeline', f'the test pipeline has {len(a)} steps in the adapter and {len(b)} here'


def _base(base: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Difference]:
    wanted, ours = base.get('fingerprint'), here.get('fingerprint')
    if wanted and ours and wanted != ours:
        yield 'base', (f'wrong base: it was trained on {base_name(base)} (fingerprint {wanted[:12]}), here is '
                       f'{here.get("base") or "another"} ({ours[:12]})')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'
