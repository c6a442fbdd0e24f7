# SPDX-License-Identifier: Apache-2.0
"""What became of every key when a published file was mapped to a backbone."""

from dataclasses import dataclass, field

import torch


@dataclass
class Report:
    """Match report of one conversion; ``str(report)`` is a short table.

    Attributes:
        source (str): Name of the published format.
        arch (str): Target architecture.
        loaded (list[str]): Target keys filled from the file with unchanged shape.
        reshaped (list[tuple]): (target key, shape in the file, shape in the target, how).
        generated (dict[str, str]): Target keys that files do not store and that follow from the shapes, with the
            reason.
        initial (dict[str, str]): Target keys that no such file has and that keep their initial value, with the reason.
        missing (list[str]): Target keys that the file should have and has not.
        left_out (dict[str, str]): Keys of the file that are not used, with the reason.
        unexpected (list[str]): Keys of the file that nothing explains.
        notes (list[str]): What else a reader should know, such as approximations.
        extras (dict[str, Tensor]): Tensors outside the backbone that may be of use: ``head.weight``, ``head.bias``,
            ``proj`` (CLIP: width x embedding), ``register_tokens``, ``pre_logits.weight``, ``pre_logits.bias``.
    """
    source: str
    arch: str
    loaded: list[str] = field(default_factory=list)
    reshaped: list[tuple[str, tuple[int, ...], tuple[int, ...], str]] = field(default_factory=list)
    generated: dict[str, str] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extras: dict[str, torch.Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = [(len(self.loaded), 'loaded'), (len(self.reshaped), 'reshaped'), (len(self.generated), 'generated'),
                  (len(self.initial), 'initial'), (len(self.missing), 'missing'), (len(self.left_out), 'left out'),
                  (len(self.unexpected), 'unexpected')]
        lines = [f'{self.source} -> {self.arch}: ' + ', '.join(f'{number} {word}' for number, word in counts)]
        lines += [f'  {"reshaped":<11}{text}' for text in self._reshaped_lines()]
        for word, table in (('generated', self.generated), ('initial', self.initial), ('left out', self.left_out)):
            lines += [f'  {word:<11}{text}' for text in _grouped(table)]
        for word, keys in (('missing', self.missing), ('unexpected', self.unexpected)):
            lines += [f'  {word:<11}{shorten(keys)}'] if keys else []
        lines += [f'  {"note":<11}{note}' for note in self.notes]
        return '\n'.join(lines)

    def _reshaped_lines(self) -> list[str]:
        groups: dict[tuple[tuple[int, ...], tuple[int, ...], str], list[str]] = {}
        for key, old, new, how in self.reshaped:
            # Twelve tables that were resized alike are one line.
            groups.setdefault((old, new, how), []).append(key)
        return [f'{shorten(keys, 2)} {old} -> {new}: {how}' for (old, new, how), keys in groups.items()]


def shorten(keys: list[str], show: int = 3) -> str:
    """``'a, b, c and 7 more'``."""
    # All of a thousand keys would hide the line.
    rest = len(keys) - show
    return ', '.join(keys[:show]) + (f' and {rest} more' if rest > 0 else '')


def _grouped(table: dict[str, str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for key, reason in table.items():
        groups.setdefault(reason, []).append(key)
    return [f'{shorten(keys)}: {reason}' for reason, keys in groups.items()]
