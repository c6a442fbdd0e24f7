# SPDX-License-Identifier: Apache-2.0
"""Methods that choose something from the training data look at it before the first step."""

import copy
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import print_log
from torch import Tensor, nn

from ..registry import HOOKS
from ..sites import Method
from ..tuning import find_backbone, unwrap
from .random_state import drawing_from


def contrastive_loss(features: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Supervised contrastive loss of Khosla et al., https://arxiv.org/abs/2004.11362, equation 2, a scalar.

    Args:
        features: (N, C), normed here.
        labels: (N); samples without another one of their class count nothing.
        temperature: Divisor of the similarities.
    """
    z = F.normalize(features.flatten(1), dim=1)
    same = (labels[:, None] == labels[None]).fill_diagonal_(False)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logs = (z @ z.t() / temperature).masked_fill(itself, -torch.inf).log_softmax(1)
    partners = same.sum(1)
    per_sample = -logs.masked_fill(~same, 0.).sum(1) / partners.clamp(min=1)
    return per_sample.sum() / (partners > 0).sum().clamp(min=1)


def drawn_head(classes: int, width: int, like: Tensor, seed: int) -> Tensor:
    """A linear layer of no training, (classes, C): truncated normal of 0.02, as a head starts.

    Args:
        classes: Number of classes.
        width: C.
        like: Of the type and device that are wanted, (...).
        seed: All processes must draw alike, whatever data they have read.
    """
    weight = torch.empty(classes, width)
    nn.init.trunc_normal_(weight, std=0.02, generator=torch.Generator().manual_seed(seed))
    return weight.to(like)


@HOOKS.register_module()
class ChoiceHook(Hook):
    """Let methods choose from the training data before the first step.

    Why: docs/adr/0016-choices-before-the-first-step.md.

    A run whose methods have chosen, because it is resumed or starts from an adapter, does not look again.

    Args:
        batches: Batches to look at; None: the training data once.
        views: Times that every sample is read, each time augmented anew, for the contrastive loss of methods that
            choose from its gradients.
        seed: Seed of the order and of the augmentation.

    Raises:
        ValueError: If no method chooses, samples have no single label, the number of classes is not known, or the way
            of training has no whole weights.
    """

    # Before the data loop, after what checks the data.
    priority = 'BELOW_NORMAL'

    def __init__(self, batches: Optional[int] = None, views: int = 2, seed: int = 0) -> None:
        for name, value in dict(batches=1 if batches is None else batches, views=views).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'ChoiceHook: {name} must be a whole number >= 1, got {value!r}')
        self.batches, self.views, self.seed = batches, views, seed

    def before_train(self, runner: Any) -> None:
        backbone, _ = find_backbone(runner.model)
        methods = [m for m in backbone.petl.values() if m.chooses_from]
        if not methods:
            raise ValueError('ChoiceHook: model.backbone.petl has no method that chooses from data, such as GPS, SCT '
                             'or SPT')
        waiting = [m for m in methods if not m.chosen]
        if not waiting:
            return
        if hasattr(getattr(runner, 'strategy', None), 'gathered'):
            raise ValueError(f'ChoiceHook: {type(waiting[0]).__name__} chooses among whole weights, which sharded '
                             'training does not have: choose in a run without, then start from its adapter')
        data = runner.cfg.train_dataloader
        # Gradients of two losses must not meet: methods that ask for another loss look at the data apart.
        parts = [[m for m in waiting if (m.chooses_from == 'loss') == alone] for alone in (False, True)]
        for part in filter(None, parts):
            with drawing_from(self.seed):
                for line in choose(unwrap(runner.model), part, self._batches(runner, data), classes_of(runner)):
                    print_log(line, 'current')

    def _batches(self, runner: Any, data: Any) -> Iterator[List[Any]]:
        """The same samples ``views`` times, each time read anew."""
        keep = {k: copy.deepcopy(v) for k, v in data.items() if k in ('batch_size', 'dataset', 'collate_fn')}
        keep.update(num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True, seed=self.seed))
        keep.update(drop_last=False)
        loaders = [runner.build_dataloader(copy.deepcopy(keep), seed=self.seed) for _ in range(self.views)]
        for number, views in enumerate(zip(*loaders)):
            if self.batches is not None and number >= self.batches:
                return
            yield list(views)


def classes_of(runner: Any) -> int:
    """Number of classes of a run's data.

    Raises:
        ValueError: If neither the data set nor the head says it.
    """
    meta = getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}
    model = unwrap(runner.model)
    head = getattr(model, 'cls_head', None) or getattr(model, 'head', None)
    found = getattr(head, 'num_classes', None) or len(meta.get('classes') or ())
    if not found:
        raise ValueError('ChoiceHook: the number of classes is not known: set model.head.num_classes')
    return int(found)


def choose(model: nn.Module, methods: List[Method], batches: Any, classes: int,
           head: Optional[Tensor] = None) -> List[str]:
    """Show batches to methods, and let them choose.

    Methods that choose from 'gradients' see those of the contrastive loss; those that choose from 'loss' see those of
    the cross-entropy of a linear layer on the features.

    Args:
        model: A classifier or recognizer with ``data_preprocessor``.
        methods: What is to choose, of its backbone.
        batches: Lists of views of the same samples, each as a data loader gives them.
        classes: Number of classes.
        head: Linear layer (classes, C) of the cross-entropy; None: drawn, as an untrained head is.

    Returns:
        What was chosen, a line for each method.

    Raises:
        ValueError: If some methods choose from 'loss' and others from something else, or samples have no label.
    """
    kinds = {m.chooses_from for m in methods}
    if 'loss' in kinds and len(kinds) > 1:
        raise ValueError(f'choose: methods choose from {", ".join(sorted(map(str, kinds)))}: let those that choose '
                         'from the loss do so apart')
    seed = int(torch.randint(2**31, ())) if 'loss' in kinds else 0  # before any data are read
    backbone, training = find_backbone(model)[0], model.training
    model.train(False)
    for method in methods:
        method.look(classes)
    backbone.petl.refresh()
    backward = kinds != {'features'}
    try:
        # A graph that was compiled notes nothing.
        with torch.compiler.set_stance('force_eager'), torch.set_grad_enabled(backward):
            for views in batches:
                seen = []
                for view in views if 'gradients' in kinds else views[:1]:
                    seen.append(_features(model, backbone, view))
                    for method in methods:
                        method.saw(seen[-1][1])
                features, labels = (torch.cat(part) for part in zip(*seen))
                if 'loss' in kinds:
                    head = drawn_head(classes, features.shape[1], features, seed) if head is None else head
                    F.cross_entropy(F.linear(features, head), labels).backward()
                elif backward:
                    contrastive_loss(features, labels).backward()
                model.zero_grad(set_to_none=True)
        for method in methods:
            for total in method.noted():
                all_reduce(total)
        return [method.choose() for method in methods]
    finally:
        backbone.petl.refresh()
        model.train(training)


def _features(model: nn.Module, backbone: nn.Module, batch: Dict[str, Any]) -> Tuple[Tensor, Tensor]:
    """Features (B, C) and labels (B) of a batch."""
    data = model.data_preprocessor(batch, False)
    inputs, samples = data['inputs'], data.get('data_samples') or []
    labels = [getattr(sample, 'gt_label', None) for sample in samples]
    if not labels or any(label is None or label.numel() != 1 for label in labels):
        raise ValueError('ChoiceHook: every sample of the training data needs one label')
    if inputs.dim() == 6:  # clips of one video: (B, clips, C, T, H, W)
        inputs = inputs.flatten(0, 1)
    out = backbone(inputs)
    while isinstance(out, (tuple, list)):
        out = out[-1]
    out = out.flatten(2).mean(2) if out.dim() > 3 else out.mean(1) if out.dim() == 3 else out
    out = out.unflatten(0, (len(labels), -1)).mean(1)
    return out, torch.cat([label.flatten() for label in labels]).to(out.device)
