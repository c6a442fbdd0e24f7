# SPDX-License-Identifier: Apache-2.0
"""The page of an adapter on the hub, written from its header: what the header does not say, the page does not say."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from ..names import markdown_text, plain_name
from .hub import ADAPTER

#: Shows that a page was written here, and may be written again.
MARK = '<!-- written by mmpetl from the header of the adapter; without this line it stays as it is -->'
_HUB_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*', re.ASCII)
_WORD = re.compile(r'[A-Za-z0-9][\w.-]*', re.ASCII)


def card(header: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], repo: str, file: str = ADAPTER,
         licence: str = '', base_model: str = '', config: str = '', tags: Sequence[str] = ()) -> str:
    """The text of ``README.md``.

    Args:
        header: Header of the adapter file.
        shapes: Shapes of its tensors by key.
        repo: ``user/repo``.
        file: Its name in the repository.
        licence: Identifier of the licence, such as 'apache-2.0'; '' leaves it out.
        base_model: Name of the base on the hub; '' takes it from the header where it has one.
        config: Config with which it was trained: a shipped one's name, or a file's.
        tags: Further tags.

    Returns:
        YAML metadata, then Markdown; every name out of the header is text.
    """
    origin, base = origin_of(header), str((header.get('base') or {}).get('id') or '')
    # Only a name of the hub is one that a reader can follow; paths on the author's machine are none.
    named = base_model or (base if _HUB_NAME.fullmatch(base) else '')
    measured = {k: v for k, v in (header.get('metrics') or {}).items() if isinstance(v, (int, float))}
    kinds = [str(m['type']).split('.')[-1] for m in header['methods']]
    words = ['mmpetl', *(k.lower() for k in kinds), *([origin['library']] if origin else ()), *map(str, tags)]
    address = f'hf://{repo}' if file == ADAPTER else f'hf://{repo}/{file}'
    lines = ['---', _metadata(named, licence, words, measured), '---', '', MARK, '',
             f'# {markdown_text(repo.split("/")[-1])}', '', *_first(header, kinds, named), '', '## How to load it', '',
             '```python', *load_lines(header, shapes, address, base_model, config), '```', '',
             *_about_loading(header, config, origin), '', '## What it is', '', '| | |', '|---|---|']
    lines += [f'| {what} | {value} |' for what, value in _rows(header, named)]
    lines += _about_metrics(measured, config)
    classes = header.get('classes')
    if classes:
        shown = ', '.join(markdown_text(str(c)[:80]) for c in classes[:100])
        lines += ['', '## Classes', '', shown + (f' ... ({len(classes)} in all)' if len(classes) > 100 else '')]
    lines += ['', '## Licence', '', f'`{_code(licence)}`, of the adapter.' if licence else
              'Its author has named no licence.', 'The base is no part of it and has a licence of its own.', '']
    return '\n'.join(lines)


def _metadata(named: str, licence: str, words: Sequence[str], measured: Mapping[str, Any]) -> str:
    """The page's metadata as YAML, in the hub's keys."""
    data: dict[str, Any] = dict(library_name='mmpetl')
    if named:
        data.update(base_model=named, base_model_relation='adapter')
    if licence:
        data['license'] = licence
    data['tags'] = list(dict.fromkeys(words))
    if measured:
        data['metrics'] = list(dict.fromkeys(str(k).split('/')[0] for k in measured))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=False).rstrip()


def _about_metrics(measured: Mapping[str, Any], config: str) -> Iterator[str]:
    if measured:
        yield from ('', '## Measured', '')
        yield ('As the header says; on which data, only its author knows.' if not config else
               f'As the header says, on the validation data of `{_code(config)}`.')
        yield from ('', '| metric | value |', '|---|---|')
        yield from (f'| {markdown_text(k)} | {v:g} |' for k, v in measured.items())


def origin_of(header: Mapping[str, Any]) -> dict[str, str]:
    """``library``, ``name`` and ``type`` of the model that was adapted, where the header says them in plain words; else
    empty."""
    found = (header.get('model') or {}).get('origin')
    if not isinstance(found, Mapping) or found.get('library') not in ('timm', 'transformers'):
        return {}
    texts = {k: found.get(k) for k in ('library', 'name', 'type')}
    fits = all(isinstance(v, str) for v in texts.values()) and str(texts['type']).isidentifier() and (
        _WORD.fullmatch(str(texts['name'])) or _HUB_NAME.fullmatch(str(texts['name'])))
    return {k: str(v) for k, v in texts.items()} if fits else {}


def load_lines(header: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], address: str, base_model: str = '',
               config: str = '') -> list[str]:
    """Lines of Python that load the adapter: they run as they stand where the header, or ``config``, says what is to be
    built."""
    origin = origin_of(header)
    if config:
        return ['import mmpetl', f'results = mmpetl.infer({config!r}, {address!r}, ["picture.png"])', 'print(results)']
    if not origin:
        return ['import mmpetl', f'model = ...  # a {_code(header["backbone"])}, with the base in it',
                f'mmpetl.load_adapter(model, {address!r})']
    heads = [shapes[key][0] for key in header.get('head') or () if key in shapes and len(shapes[key]) == 2]
    if origin['library'] == 'timm':
        name = base_model.removeprefix('timm/') if base_model else origin['name']
        build = f'model = timm.create_model({name!r}, pretrained=True, num_classes={heads[-1] if heads else 0})'
    else:
        more = f', num_labels={heads[-1]}, ignore_mismatched_sizes=True' if heads else ''
        build = f'model = transformers.{origin["type"]}.from_pretrained({base_model or origin["name"]!r}{more})'
    return [f'import mmpetl, {origin["library"]}', build, f'mmpetl.load_adapter(model, {address!r})']


def _first(header: Mapping[str, Any], kinds: Sequence[str], named: str) -> Iterator[str]:
    what = ' + '.join(markdown_text(k) for k in kinds) or 'A head without methods'
    counts = header.get('counts') or {}
    yield (f'{what} for a frozen `{_code(header["backbone"])}`' + (f' ({markdown_text(named)})' if named else '')
           + f': {counts.get("total", 0):,} trained parameters, made with [mmpetl](https://pypi.org/project/mmpetl/).')


def _about_loading(header: Mapping[str, Any], config: str, origin: Mapping[str, str]) -> Iterator[str]:
    if config:
        yield (f'`{_code(config)}` is the config with which it was trained; `mmpetl test` and `mmpetl merge` take the '
               'same.')
    elif not origin:
        yield 'The model is the one that was adapted, with the weights that it was adapted from.'
    if (header.get('base') or {}).get('fingerprint'):
        yield 'The weights of the base are compared with their fingerprint; another base is refused.'


def _rows(header: Mapping[str, Any], named: str) -> Iterator[tuple[str, str]]:
    for method in header['methods']:
        given = {k: v for k, v in method.items() if k not in ('type', 'name') and v is not None}
        options = ', '.join(f'{k}={_plain(v)}' for k, v in given.items())
        yield 'method', f'{markdown_text(method["type"])}: {options}' if options else markdown_text(method['type'])
    if header.get('tune'):
        yield 'tuned parameters', markdown_text(', '.join(map(str, header['tune'][:20])))
    base, counts = header.get('base') or {}, header.get('counts') or {}
    yield 'base', markdown_text(named or base.get('id') or 'not named in the header')
    if base.get('fingerprint'):
        yield 'fingerprint of the base', f'`{_code(base["fingerprint"])}`'
    for key, what in (('petl', 'parameters of methods'), ('tuned', 'tuned parameters of the base'),
                      ('head', 'parameters of the head'), ('base', 'parameters of the base')):
        if key in counts:
            yield what, f'{counts[key]:,}'
    yield 'written by', f'mmpetl {markdown_text(header["mmpetl_version"])}'


def _plain(value: Any) -> str:
    return markdown_text(str(value)[:200])


def _code(text: Any) -> str:
    return re.sub(r'[^\w./:+ -]', '', str(text))[:200]


def check_words(licence: str, base_model: str, tags: Sequence[str]) -> None:
    """Refuse what cannot stand in the metadata.

    Raises:
        ValueError: In one line that names the option.
    """
    if licence and not _WORD.fullmatch(licence):
        raise ValueError(f"licence={licence!r:.80}: give its identifier on the hub, such as 'apache-2.0'")
    if base_model and not _HUB_NAME.fullmatch(base_model):
        raise ValueError(f"base_model={base_model!r:.80}: give its name on the hub, 'user/name'")
    if isinstance(tags, str):
        raise ValueError(f'tags={tags!r:.80}: give a list of words')
    for tag in tags:
        plain_name(tag, 'tag')
