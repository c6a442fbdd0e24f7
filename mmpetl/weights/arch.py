# SPDX-License-Identifier: Apache-2.0
"""What an architecture of weights is: its published formats, and its names in other libraries.

One :class:`Arch` stands at the end of each family's own file; :mod:`mmpetl.weights.archs` collects them. No other file
names a family.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .match_report import Report
from .rename import Ignored, Rules, State

Shapes = dict[str, tuple[int, ...]]


def has(state: State, start: str) -> bool:
    """Whether a key of a state dict starts with ``start``."""
    return any(key.startswith(start) for key in state)


@dataclass(frozen=True)
class Format:
    """A published naming of weights.

    Attributes:
        family (str): Its common form, the name of the family's file.
        anchor (str): A key that every such file has, under some prefix; it marks where the backbone begins.
        fits (Callable): Whether a state dict, prefix removed, that has the anchor is of this format.
        read (Callable): Prefix-free state dict -> common form.
        outer (tuple): Rules for wanted keys outside the prefix (pattern, name as if inside).
        outer_ignored (tuple): Reasons for other keys outside the prefix.
        words (tuple): Key table whose words tell which format an unknown file is nearest to.
        aliases (tuple): Other names under which people know the format.
        arch_of (Callable): Whole state dict -> architecture that the file is made for; None: the family's.
    """
    family: str
    anchor: str
    fits: Callable[[State], bool]
    read: Callable[[State, Report], State]
    outer: Rules = ()
    outer_ignored: Ignored = ()
    words: Rules = ()
    aliases: tuple[str, ...] = ()
    arch_of: Callable[[State], str] | None = None

    def made_for(self, state: State) -> str:
        """The architecture that a whole state dict of this format is made for."""
        return self.family if self.arch_of is None else self.arch_of(state)


@dataclass(frozen=True)
class Export:
    """An architecture's names in another library.

    Attributes:
        rules (tuple): Key table. ``@`` in a new name: the tensor is split into query, key and value.
        prepare (Callable): Brings order and shapes to the library's before keys are renamed, and drops what the library
            computes itself.
        config (Callable): (state, entries that all models have) -> all entries of transformers' ``config.json``.
    """
    rules: Rules
    # A copy: what is renamed belongs to the caller.
    prepare: Callable[[State], State] = dict
    config: Callable[[State, dict[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Arch:
    """An architecture of weights.

    Attributes:
        name (str): As ``--arch`` takes it.
        families (tuple): Common forms that it takes, its own first; others are images to be inflated in time.
        adapt (Callable): (state, shapes, grid, report) -> state under the target's names.
        initial (Callable): shapes -> target keys that files may lack, with reasons.
        spare (tuple): Keys that the target may lack, with reasons.
        formats (dict): Published formats by name; the first that fits a file names it.
        exports (dict): Library -> names of the weights there.
        lora (dict): Library -> (block, modules of the ops), for peft. 'hf' and 'hf4' are the module names of
            transformers 5 and 4, which differ.
        no_lora (dict): Library -> why a LoRA of peft has no effect there.
        stem (str): What stands before the number of a block.
        fc1 (str): First layer of a block's feed-forward network.
        projects (bool): Whether the head is a projection beside text (``proj``), not a classifier.
        hf_input (Callable): (grid, patch) -> entries of transformers' config that no tensor tells.
        elsewhere (Callable): (state, library) -> the architecture as which the library knows these weights, if another.
    """
    name: str
    families: tuple[str, ...]
    adapt: Callable[[State, Shapes, tuple[int, ...] | None, Report], State]
    initial: Callable[[Shapes], Ignored]
    spare: Ignored
    formats: Mapping[str, Format] = field(default_factory=dict)
    exports: Mapping[str, Export] = field(default_factory=dict)
    lora: Mapping[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    no_lora: Mapping[str, str] = field(default_factory=dict)
    stem: str = 'layers'
    fc1: str = 'ffn.layers.0.0'
    projects: bool = False
    hf_input: Callable[[tuple[int, ...], tuple[int, ...]], dict[str, Any]] = lambda grid, patch: {}
    elsewhere: Callable[[Mapping[str, Any], str], 'Arch | None'] = lambda state, library: None
