# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin at the mean class tokens of the classes.

Jia et al., "Visual Prompt Tuning", https://arxiv.org/abs/2203.12119, ablation of the initialisation: a prompt for every
class, the mean of the class tokens that the frozen base gives its training samples. The published options are the
tokens behind the last block for all blocks ('final'), or those that enter each block ('before') or leave it ('after').
"""

from contextlib import ExitStack
from typing import Any, Dict, List, Tuple

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from torch import Tensor, nn

from ..registry import HOOKS
from ..sites import Method, nearest
from ..tuning import find_backbone, unwrap

TAKES = ('final', 'before', 'after')


def prompted(backbone: nn.Module) -> Any:
    """The one method of a backbone whose prompts can begin at class tokens.

    Raises:
        ValueError: If there is none or several, its prompts are projected, or blocks differ in width.
    """
    methods: List[Method] = [m for m in backbone.petl.values() if 'prompts' in m.points()]
    if len(methods) != 1:
        held = ', '.join(type(m).__name__ for m in backbone.petl.values()) or 'no method'
        raise ValueError(f'ClassStartHook needs exactly one method with prompts (VPT, E2VPT) in model.backbone.petl, '
                         f'which holds {held}')
    method: Any = methods[0]
    if getattr(method, 'project', None) is not None:
        raise ValueError(f'ClassStartHook: class tokens cannot stand before a projection: leave project of '
                         f'{type(method).__name__} out')
    widths = sorted({spec.dim for spec in method.specs})
    if len(widths) > 1:
        raise ValueError('ClassStartHook: class tokens of one width are needed, the blocks of this backbone have '
                         f'{widths}')
    return method


def _token(x: Tensor, leading: int) -> Tensor:
    """Stream (B, N, C) or (B, T, H, W, C), or feature (B, C) -> the class token (B, C), or the mean of the tokens."""
    x = x if x.dim() == 2 else x.flatten(1, -2)
    return (x if x.dim() == 2 else x[:, 0] if leading else x.mean(1)).detach().double()


class _Seen:
    """Tokens of one batch: entering block 0, leaving each block, and the feature."""

    def __init__(self, backbone: nn.Module) -> None:
        self.blocks = list(backbone.petl.blocks)
        self.leading = self.blocks[0].spec.extra_tokens
        self.tokens: List[Tensor] = []
        self.handles = [self.blocks[0].register_forward_pre_hook(self._enter)]
        self.handles.append(backbone.register_forward_hook(self._final))
        self.handles += [block.register_forward_hook(self._leave) for block in self.blocks]

    def _enter(self, module: nn.Module, args: Tuple[Any, ...]) -> None:
        self.tokens = [_token(args[0], self.leading)]

    def _leave(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.tokens.append(_token(out, self.leading))

    def _final(self, module: nn.Module, args: Any, out: Any) -> None:
        out = out[-1] if isinstance(out, (tuple, list)) else out
        self.tokens.append(_token(out, self.leading))

    def __enter__(self) -> '_Seen':
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def class_tokens(model: nn.Module, loader: Any, classes: int) -> Tensor:
    """Mean class tokens of the training data by the frozen base; under several processes, of all their samples.

    Args:
        model: Classifier or recognizer with an attached backbone; its methods take no part.
        loader: Batches as the training dataloader gives them, each sample once.
        classes: Number of classes K.

    Returns:
        (K, L + 2, C), float64: entering block 0, leaving blocks 0 to L-1, and the feature behind the last norm.

    Raises:
        ValueError: If a sample has several labels, or a class has no sample.
    """
    backbone, _ = find_backbone(model)
    training, total, counts = model.training, None, torch.zeros(classes, dtype=torch.float64)
    with ExitStack() as stack:
        stack.enter_context(backbone.petl.disabled())
        seen = stack.enter_context(_Seen(backbone))
        stack.callback(model.train, training)
        model.eval()
        for batch in loader:
            data = model.data_preprocessor(batch, False)
            labels = [sample.gt_label.reshape(-1).tolist() for sample in data['data_samples']]
            if any(len(label) != 1 for label in labels):
                raise ValueError('ClassStartHook: samples have several labels, so classes have no mean of their own')
            model(**data, mode='predict')
            tokens = torch.stack(seen.tokens, 1)
            # A sample may be several views or frames, side by side.
            tokens = tokens.unflatten(0, (len(labels), -1)).mean(1).cpu()
            total = tokens.new_zeros(classes, *tokens.shape[1:]) if total is None else total
            index = torch.tensor(labels)[:, 0]
            total.index_add_(0, index, tokens)
            counts.index_add_(0, index, torch.ones(len(index), dtype=torch.float64))
    if total is None:
        raise ValueError('ClassStartHook: the training data are empty')
    all_reduce(total)
    all_reduce(counts)
    if (counts == 0).any():
        raise ValueError(f'ClassStartHook: no training sample of class {int(counts.argmin())}, of which a prompt would '
                         'be made')
    return total / counts[:, None, None]


def gather(tokens: Tensor, count: int) -> Tensor:
    """As many rows as there are prompts.

    Args:
        tokens: (K, L + 2, C) of :func:`class_tokens`.
        count: Prompts P of a block.

    Returns:
        (P, L + 2, C): the classes themselves, or the means of P clusters of classes that are alike in their features
        (k-means, always the same).

    Raises:
        ValueError: If there are fewer classes than prompts.
    """
    if count > len(tokens):
        raise ValueError(f'ClassStartHook: {len(tokens)} classes cannot start num_tokens={count} prompts: give that '
                         'many or fewer')
    if count == len(tokens):
        return tokens
    from sklearn.cluster import KMeans
    groups = torch.from_numpy(KMeans(count, n_init=10, random_state=0).fit_predict(tokens[:, -1].numpy()))
    return torch.stack([tokens[groups == n].mean(0) for n in range(count)])


@HOOKS.register_module()
class ClassStartHook(Hook):
    """Begin a training with prompts of VPT or E2VPT at mean class tokens; a training that is resumed or has
    ``load_from`` keeps its values.

    Args:
        take: 'final': the feature, for all blocks; 'before' or 'after': what enters or leaves each block.

    Raises:
        ValueError: If ``take`` is unknown; in training, see the functions above.
    """

    priority = 'VERY_HIGH'  # the guards remember what training begins with

    def __init__(self, take: str = 'final') -> None:
        if take not in TAKES:
            raise ValueError(f'ClassStartHook: unknown take {take!r}' + nearest(take, TAKES))
        self.take = take

    def before_train(self, runner: Any) -> None:
        if runner.iter or runner._load_from:
            return
        model = unwrap(runner.model)
        method = prompted(find_backbone(model)[0])
        loader: Dict[str, Any] = dict(
            runner.cfg.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
            batch_sampler=None, drop_last=False, persistent_workers=False)
        runner.logger.info('Prompts begin at mean class tokens: reading the training data once')
        loader = runner.build_dataloader(loader, seed=runner.seed)
        meta = getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}
        head = getattr(model, 'head', None) or getattr(model, 'cls_head', None)
        tokens = class_tokens(model, loader, len(meta.get('classes') or ()) or head.num_classes)
        set_prompts(method, tokens, self.take)


@torch.no_grad()
def set_prompts(method: Any, tokens: Tensor, take: str) -> None:
    """Write class tokens (K, L + 2, C) of :func:`class_tokens` into the prompts of a method."""
    for key, prompts in method.prompts.items():
        rows = gather(tokens, len(prompts))
        prompts.copy_(rows[:, dict(final=-1, before=int(key), after=int(key) + 1)[take]])
