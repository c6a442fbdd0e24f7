# SPDX-License-Identifier: Apache-2.0
"""How much each prompt, and each segment of its channels, matters to the loss of a trained model.

A token's score can be measured or estimated:

* ``target='removal'``: the mean loss without the token minus the mean loss with it. One forward pass a token, no
  backward pass.
* ``target='attention'``: the derivative of the loss by a gate g = 1 on the token (Michel et al.,
  https://arxiv.org/abs/1905.10650, equation 2), whose logarithm is added to the prompt's key logits, so that g = 0 is
  removal. One pass for all tokens.
* ``target='embedding'``: the same with a gate that multiplies the prompt, as E2VPT publishes it. The LayerNorm behind
  it undoes a common factor of all channels, so this derivative is nearly zero whatever the prompt does.

A derivative sees a small step, removal is a big one: on trained models the two rank tokens differently
(docs/methods/e2vpt.md). Segments, of which there are many, always have gates in the embedding. Gates are one per
sample, so scores depend neither on the batch size nor on the processes.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import Tensor, nn

from ..sites import Method, nearest
from ..tuning import find_backbone, unwrap

TARGETS = ('removal', 'attention', 'embedding')
REDUCTIONS = ('mean_of_abs', 'abs_of_mean', 'signed_mean')
VARIANTS = ('paper', 'released')


def find_prunable(model: nn.Module) -> Tuple[nn.Module, str, Any]:
    """The backbone, name and object of a model's one method that can be pruned.

    Raises:
        ValueError: If the backbone has no such method, or several.
    """
    backbone, _ = find_backbone(model)
    methods: Dict[str, Method] = dict(backbone.petl.items())
    found = [(name, m) for name, m in methods.items() if hasattr(m, 'prune')]
    if len(found) != 1:
        held = ', '.join(type(m).__name__ for m in methods.values()) or 'no method'
        raise ValueError(f"pruning needs exactly one dict(type='E2VPT') in model.backbone.petl, which holds {held}")
    return backbone, *found[0]


@dataclass
class PromptScores:
    """Scores of the original tokens, high is important; tokens that were removed before have -inf.

    Attributes:
        tokens: (P,).
        segments: (P, S).
        samples: Number of samples behind them.
    """
    tokens: Tensor
    segments: Tensor
    samples: int

    def choose(self, tokens: int, segments: int) -> Tuple[Tensor, Tensor]:
        """Keep-masks (P,) and (P, S), bool, without the ``tokens`` lowest tokens and the ``segments`` lowest segments
        of each token.

        Choices are nested: what goes at one level goes at every higher one.

        Raises:
            ValueError: If more would be pruned than exists, or nothing left.
        """
        keep = []
        for scores, count, what in ((self.tokens, tokens, 'tokens'), (self.segments, segments, 'segments')):
            total = scores.shape[-1]
            if not 0 <= count < total:
                raise ValueError(f'cannot prune {count} of {total} {what}: choose 0..{total - 1}')
            order = scores.argsort(stable=True, dim=-1)  # among equals the first, on every machine
            keep.append(torch.ones_like(scores, dtype=torch.bool).scatter_(-1, order[..., :count], False))
        return keep[0], keep[1]


def mask_levels(total: int,
                minimum: int = 1,
                percents: Sequence[int] = tuple(range(10, 100, 10)),
                zero: bool = True) -> List[int]:
    """Numbers of units to try to prune: the distinct int(total * percent / 100), never leaving fewer than ``minimum``.

    Args:
        total: Units that exist.
        minimum: Units that must remain.
        percents: Ratios in percent.
        zero: Put the unpruned model in as a candidate; the published search leaves it out.

    Raises:
        ValueError: If ``minimum`` is not in 1..total or a percentage not in 0..100.
    """
    if not 1 <= minimum <= total:
        raise ValueError(f'a minimum of {minimum} of {total} units cannot be kept: choose 1..{total}')
    if any(not 0 <= p <= 100 for p in percents):
        raise ValueError(f'pruning percentages must lie in 0..100, got {list(percents)}')
    levels = {min(int(total * p / 100), total - minimum) for p in percents}
    return sorted(levels | {0} if zero else levels)


class PromptScorer:
    """Scores prompts on data. Weights, gradients, running statistics and the optimizer are never touched.

    Args:
        target: What a token's score is: 'removal', 'attention' or 'embedding', see above.
        reduce: 'mean_of_abs', 'abs_of_mean' or 'signed_mean' of derivatives over samples; removal is always the signed
            mean.
        weighting: 'sample' gives each sample one vote, 'batch' each batch, however small (as published).
        normalise: Divide token scores by their norm, and segment scores by the norm over their token's segments.
        variant: 'released' sets the published rule: ('embedding', 'signed_mean', 'batch').

    Raises:
        ValueError: If an option is unknown.
    """

    def __init__(self,
                 target: str = 'removal',
                 reduce: str = 'mean_of_abs',
                 weighting: str = 'sample',
                 normalise: bool = False,
                 variant: str = 'paper') -> None:
        known = dict(target=TARGETS, reduce=REDUCTIONS, weighting=('sample', 'batch'), variant=VARIANTS)
        for name, value in dict(target=target, reduce=reduce, weighting=weighting, variant=variant).items():
            if value not in known[name]:
                raise ValueError(f'prompt scoring: unknown {name} {value!r}' + nearest(value, known[name]))
        if variant == 'released':
            target, reduce, weighting = 'embedding', 'signed_mean', 'batch'
        self.target, self.reduce, self.weighting, self.normalise = target, reduce, weighting, normalise

    def score(self, model: nn.Module, loader: Iterable[Any]) -> PromptScores:
        """Score the prompts of ``model`` on all batches of ``loader``; under several processes, on those of all.

        Args:
            model: A classifier with ``data_preprocessor``, ``loss`` mode and exactly one prunable method.
            loader: Batches as the training dataloader gives them. Across processes no sample may come twice.

        Raises:
            ValueError: If there is no prunable method or no data, or a score is not finite.
        """
        model = unwrap(model)
        backbone, _, method = find_prunable(model)
        petl, training, full = backbone.petl, model.training, backbone.petl.full_prompts
        kept = method.kept
        # What is summed: token scores, segment scores, votes, samples.
        # In double: the sum must not depend on how samples are dealt out to batches and processes.
        total = torch.zeros(len(kept) * (1 + method.segments) + 2, dtype=torch.float64)
        model.eval()
        # Windows cannot hold prompts that differ by sample as bare keys and values.
        petl.full_prompts = full or any(spec.window for spec in method.specs)
        petl.refresh()
        try:
            for batch in loader:
                total += self._score_batch(model, petl, method, batch).cpu()
        finally:
            petl.full_prompts = full
            petl.refresh()
            model.train(training)
        all_reduce(total)
        samples, votes = int(total[-1]), total[-2]
        if not samples:
            raise ValueError('prompt scoring: the dataloader gave no sample')
        mean = total[:-2] / votes
        if not mean.isfinite().all():
            raise ValueError(
                'prompt scoring: a score is not finite; the trained model gives no finite loss on this data')
        print_log(f'Scored {len(kept)} prompts on {samples} samples ({self.target}, {self.reduce})', 'current')
        mean = mean.abs() if self.reduce == 'abs_of_mean' else mean
        parts = []
        for found, shape in ((mean[:len(kept)], (-1, )), (mean[len(kept):], (len(kept), -1))):
            found = found.view(shape)
            if self.normalise:
                found = found / (found.norm(dim=-1, keepdim=True) + 1e-20)  # as published; all zero stays zero
            scores = found.new_full((method.num_tokens, *found.shape[1:]), float('-inf'))
            scores[kept.cpu()] = found
            parts.append(scores)
        return PromptScores(parts[0], parts[1], samples)

    def _score_batch(self, model: nn.Module, petl: Any, method: Any, batch: Any) -> Tensor:
        data = model.data_preprocessor(batch, False)
        count, kept, like = len(data['inputs']), len(method.kept), next(iter(method.prompts.values()))

        def loss() -> Tensor:
            # The loss is the mean over the batch, and in evaluation mode no sample sees another.
            return model.parse_losses(model(**data, mode='loss'))[0] * count

        gates = [like.new_zeros(count, kept, *more, requires_grad=True) for more in ((), (method.segments, ))]
        # Differences of two losses would drown in half precision.
        with torch.enable_grad(), torch.autocast(like.device.type, enabled=False):
            set_gates(petl, method, gates[0] if self.target == 'attention' else None)
            with method.gating(gates[0] if self.target == 'embedding' else None, gates[1]):
                whole = loss()
                found = torch.autograd.grad(whole, gates, materialize_grads=True)  # removal reads no token gate
            by_token, by_segment = (
                (g.abs() if self.reduce == 'mean_of_abs' else g).sum(0) for g in (g.double() for g in found))
            if self.target == 'removal':
                with torch.no_grad():
                    for row in range(kept):
                        with without_token(petl, method, row):
                            by_token[row] = loss().double() - whole.double()
        each = torch.cat([by_token, by_segment.flatten()])
        weight = 1 if self.weighting == 'sample' else 1 / count
        return torch.cat([each * weight, each.new_tensor([count * weight, count])])


def set_gates(petl: Any, method: Any, gates: Optional[Tensor]) -> None:
    """Put log-gates (B, P) of one method's prompts, or None, on the taps of all blocks in which these prompts are keys.

    Args:
        petl: The backbone's container of methods.
        method: The gated method; the prompts of methods beside it get no gate.
        gates: Log-gates (B, P), or None to take them off.
    """
    carried: Optional[Tensor] = None
    for tap in petl.taps:
        if tap.num_prompts:
            carried = None
            if gates is not None and method.held.get(tap.index) in method.pruned_layers:
                counts = [(m, m.num_prompts(tap.index)) for m in petl.values()]
                carried = torch.cat([gates if m is method else gates.new_zeros(len(gates), n) for m, n in counts if n],
                                    1)
        tap.prompt_gate = carried if tap.num_prompts or tap.prompts_in else None


@contextmanager
def without_token(petl: Any, method: Any, row: int) -> Iterator[None]:
    """Take one of the kept tokens out of a method's prompts for the time of the context.

    Args:
        petl: The backbone's container of methods.
        method: The method.
        row: Which of its kept tokens, 0..P-1.
    """
    kept, before = method.kept, {i: method.prompts[i].data for i in method.pruned_layers}
    rest = torch.arange(len(kept), device=kept.device) != row
    try:
        method.kept = kept[rest]
        for i, prompts in before.items():
            method.prompts[i].data = prompts[rest]
        petl.refresh()
        yield
    finally:
        method.kept = kept
        for i, prompts in before.items():
            method.prompts[i].data = prompts
        petl.refresh()
