# SPDX-License-Identifier: Apache-2.0
"""Class names, prompt templates and knowledge texts from files that ELEVATER's toolkit ships: read, not executed."""

import ast
import os
import re
from typing import Any, Dict, List, Sequence, Tuple

from ..suggest import nearest
from ..weights.reading import MAX_LIST, read_json, read_text

#: What may be known about a class -> key of it in the toolkit's files.
KNOWLEDGE = {'wordnet': 'def_wn', 'wordnet-path': 'path_wn', 'wiktionary': 'def_wiki', 'gpt3': 'gpt3'}
#: Data sets of videos, whose class names stand in their ``classes.txt``.
VIDEO_SETS = ('hmdb51', 'ucf101', 'k400', 'ssv2')
#: Prompts for actions: the 48 that CLIP's authors published for UCF101.
VIDEO_TEMPLATES = tuple(
    f'a {kind} of {who} {doing}{{}}.'
    for doing in ('', 'using ', 'doing ', 'during ', 'performing ', 'practicing ')
    for who in ('a person', 'the person')
    for kind in ('photo', 'video', 'example', 'demonstration'))
Prompts = Dict[str, Tuple[List[str], List[str]]]


def read_prompts(path: str) -> Prompts:
    """{data set: (class names, templates)} of the toolkit's ``datasets/prompts.py``.

    The file is parsed as text: lists of strings, and the two dicts ``class_map`` and ``template_map`` that name them.
    Of a list of synonyms the first one counts, as published.

    Raises:
        FileNotFoundError: If there is no such file; the message says how to get it.
        ValueError: If it has another form.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is missing: 'mmpetl fetch elevater-prompts' gets it")
    lists: Dict[str, Any] = {}
    maps: Dict[str, Dict[str, str]] = {}
    try:
        tree = ast.parse(read_text(path))
        for node in tree.body:
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                continue
            name = node.targets[0].id
            if isinstance(node.value, ast.Dict):
                maps[name] = {ast.literal_eval(k): v.id for k, v in zip(node.value.keys, node.value.values)
                              if k is not None and isinstance(v, ast.Name)}
            else:
                lists[name] = ast.literal_eval(node.value)
        classes, templates = ({task: lists[name] for task, name in maps[key].items()}
                              for key in ('class_map', 'template_map'))
    # The last two are how Python's parser refuses brackets nested too deep.
    except (SyntaxError, ValueError, KeyError, AttributeError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} has not the form of ELEVATER's prompts.py ({error})") from None
    return {task: ([c if isinstance(c, str) else c[0] for c in names], list(templates.get(task, ['a photo of a {}'])))
            for task, names in classes.items()}


def _load(folder: str, file: str) -> Dict[str, Dict[str, Any]]:
    path = os.path.join(folder, file)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is missing: 'mmpetl fetch elevater-knowledge' gets it")
    try:  # JSON, whatever the file is called
        return {row['classname']: row for row in read_json(path, MAX_LIST)}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} has not the form of a knowledge file ({error})') from None


def read_knowledge(folder: str, task: str, kinds: Sequence[str], gpt3_items: int = 1) -> Dict[str, List[str]]:
    """What the knowledge files say about each class of a data set.

    Of the three dictionary kinds the last one given counts, as in the toolkit, whose switches overwrite each other;
    GPT-3's texts come beside it.

    Args:
        folder: Holds ``<task>_knowledge.tsv`` and ``GPT3_<task>.tsv``.
        task: Key of the data set.
        kinds: Some of 'wordnet' (definition), 'wordnet-path' (the nearest three hypernyms), 'wiktionary', 'gpt3'.
        gpt3_items: Texts of GPT-3 per class (the toolkit has 1 to 5).

    Raises:
        FileNotFoundError: If a file is missing; the message says how to get it.
        ValueError: If a kind is unknown or a file has another form.
    """
    for kind in kinds:
        if kind not in KNOWLEDGE:
            raise ValueError(f'unknown knowledge {kind!r}' + nearest(kind, KNOWLEDGE))
    found: Dict[str, List[str]] = {}
    dictionary = [kind for kind in kinds if kind != 'gpt3']
    if dictionary:
        for name, row in _load(folder, f'{task}_knowledge.tsv').items():
            value = row.get(KNOWLEDGE[dictionary[-1]])
            text = ' '.join(value[:3]) if isinstance(value, list) else value
            # A class that the dictionary does not know keeps its plain prompts.
            found[name] = [text] if text else ['']
    if 'gpt3' in kinds:
        for name, row in _load(folder, f'GPT3_{task}.tsv').items():
            found.setdefault(name, []).extend(row['gpt3'][:gpt3_items])
    return found


def as_words(name: str) -> str:
    """Class names of action data sets as words: 'brush_hair', 'ApplyEyeMakeup' and 'Holding [something]' give 'brush
    hair', 'apply eye makeup' and 'holding something'."""
    spaced = re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', re.sub(r'[\[\]]', '', name.replace('_', ' ')))
    return ' '.join(spaced.split()).lower()


def suffixes(name: str, texts: Sequence[str]) -> List[str]:
    """What is appended to every template of a class, one string per text: `` ; name , text`` with punctuation apart.

    The toolkit splits the text with NLTK's tokenizer; here every punctuation mark stands alone. CLIP's own tokenizer
    sees a difference only where several marks follow each other.
    """
    out = []
    for text in texts:
        words = re.findall(r"\w+(?:[-'_]\w+)*|[^\w\s]", f'; {name} , {text}') if text else []
        out.append(' ' + ' '.join(words) if words else '')
    return out
