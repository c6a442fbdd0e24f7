# SPDX-License-Identifier: Apache-2.0
"""Where in a picture or clip a model looks, and how much its prompts add: integrated gradients and attention.

Sundararajan et al., "Axiomatic Attribution for Deep Networks", https://arxiv.org/abs/1703.01365, equation 1, over the
tokens that enter the first block and over gates of the keys that methods bring. The tokens go from those of an empty
picture to those of the picture, the gates from 0, as if there were no such key, to 1; all together, so that the
attributions add up to what the class's score gains on the way. A factor on a prompt itself would not do: the norm
behind it undoes it (docs/adr/0007-gates-that-score-prompts.md).
"""

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..tuning import find_backbone, unwrap


@dataclass
class Attribution:
    """What adds to the score of one class, for one picture or clip.

    Attributes:
        label: The class.
        grid: Of the grid tokens, (H, W), or (T, H, W) of a clip.
        prompts: Block -> of its prompts, (P,).
        kv: Block -> of its further keys with their values, (K,).
        gain: Score of the class minus its score for an empty picture without these keys; their sum, but for the steps.
    """
    label: int
    grid: Tensor
    prompts: Dict[int, Tensor] = field(default_factory=dict)
    kv: Dict[int, Tensor] = field(default_factory=dict)
    gain: float = 0.

    @property
    def total(self) -> float:
        """The sum of all."""
        return float(sum(t.sum() for t in (self.grid, *self.prompts.values(), *self.kv.values())))


def scores(model: nn.Module, data: Any) -> Tensor:
    """Class scores (B, K) before the softmax, for what the model's data preprocessor gave.

    Raises:
        ValueError: If the model has no classification head.
    """
    if getattr(model, 'cls_head', None) is not None:  # recognizers give features in the mode 'tensor'
        found = model.extract_feat(data['inputs'])
        found = found[0] if isinstance(found, tuple) and len(found) == 2 else found
        return model.cls_head(found)  # type: ignore[operator]
    if getattr(model, 'head', None) is None:
        raise ValueError(f'{type(model).__name__} has no classification head, so there is no score to explain')
    return model(data['inputs'], mode='tensor')


class _Layout:
    """What stands among the keys of one block: extra keys, leading tokens, prompts in the stream, grid tokens."""

    def __init__(self, block: Any, queries: int, keys: int) -> None:
        tap, spec = block.tap, block.spec
        self.leading = spec.extra_tokens
        self.stream = (tap.num_prompts if tap.prompts_read else 0) if tap.num_prompts else tap.prompts_in
        tokens = queries if spec.window is not None else self.leading + self.stream + math.prod(tap.grid)
        #: Prompts that act as keys alone come first among the extra keys.
        self.inner = tap.num_prompts - self.stream if tap.num_prompts else 0
        self.extra, self.keys = keys - tokens, keys


class _Seen(TorchFunctionMode):
    """Calls of the fused attention, with the block that makes them.

    Args:
        blocks: The backbone's blocks.
        call: Called with (number of the block, q, k, keyword arguments); may change these.
    """

    def __init__(self, blocks: Sequence[Any], call: Callable[[int, Tensor, Tensor, Dict[str, Any]], None]) -> None:
        super().__init__()
        self.blocks, self.call, self.at = blocks, call, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.call(self.at, args[0], args[1], kwargs)
        return func(*args, **kwargs)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the context calls are seen."""

        def enter(number: int) -> Callable[..., None]:
            def note(*_: Any) -> None:
                self.at = number
            return note

        with ExitStack() as stack:
            for number, block in enumerate(self.blocks):
                stack.callback(block.register_forward_pre_hook(enter(number)).remove)
                stack.callback(setattr, block, 'with_cp', block.with_cp)
                block.with_cp = False  # a block that runs again in the backward pass would not be told apart
            with self:
                yield


class _Path:
    """The way from an empty picture without prompts to the picture with them."""

    def __init__(self, blocks: Sequence[Any]) -> None:
        self.blocks, self.share = blocks, 1.
        self.empty: Optional[Tensor] = None
        #: What enters block 0 in the pass at hand, and the gates (keys that methods bring, ) by block.
        self.tokens: Any = None
        self.gates: Dict[int, Tensor] = {}
        self.layouts: Dict[int, _Layout] = {}

    def enter(self, module: nn.Module, args: Tuple[Any, ...]) -> Tuple[Any, ...]:
        """Block 0 gets the tokens of this point of the way."""
        full = args[0].detach()
        if self.empty is None:
            self.empty = full
        self.step = full - self.empty
        self.tokens = (self.empty + self.share * self.step).requires_grad_()
        return (self.tokens, *args[1:])

    def gate(self, i: int, q: Tensor, k: Tensor, kwargs: Dict[str, Any]) -> None:
        """Add the logarithm of the gates to the logits of the keys that methods bring."""
        layout = _Layout(self.blocks[i], q.shape[-2], k.shape[-2])
        count = layout.extra + layout.stream
        if layout.extra < 0 or not count:  # methods may attend along other axes
            return
        if i not in self.gates:
            self.layouts[i] = layout
            self.gates[i] = torch.full((count, ), self.share, dtype=torch.float32, device=q.device, requires_grad=True)
        log = self.gates[i].log().to(q.dtype)
        extra, stream = log[:layout.extra], log[layout.extra:]
        bias = torch.cat([extra, log.new_zeros(layout.leading), stream,
                          log.new_zeros(layout.keys - count - layout.leading)])
        mask = kwargs.get('attn_mask')
        kwargs['attn_mask'] = bias.view(1, 1, 1, -1) if mask is None else mask + bias


def attribution(model: nn.Module, data: Any, label: Optional[int] = None, steps: int = 16) -> Attribution:
    """Integrated gradients of one class's score over tokens, prompts, and further keys and values.

    Args:
        model: Classifier or recognizer with an attached backbone.
        data: One picture or clip as the data preprocessor gives it, ``dict(inputs=(1, ...))``. Views and frames of one
            sample are added up.
        label: The class; None: the one that the model names.
        steps: Points on the way.

    Returns:
        The attributions, on the CPU.

    Raises:
        ValueError: If a side method or a missing head leaves nothing to explain.
    """
    model = unwrap(model)
    backbone, _ = find_backbone(model)
    if any('side' in m.points() for m in backbone.petl.values()):
        raise ValueError('a side method reads the frozen base without gradients, so tokens have no attribution')
    blocks = list(backbone.petl.blocks)
    path = _Path(blocks)
    grid, prompts, kv = torch.zeros(0), {}, {}  # type: ignore[var-annotated]
    with ExitStack() as stack:
        stack.callback(model.train, model.training)
        model.eval()
        for parameter in [p for p in model.parameters() if p.requires_grad]:
            stack.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        stack.callback(blocks[0].register_forward_pre_hook(path.enter).remove)
        stack.enter_context(_Seen(blocks, path.gate).on())
        with torch.no_grad():
            path.share = 0.
            nothing = scores(model, dict(inputs=torch.zeros_like(data['inputs']))).float().mean(0)
            path.share, path.gates = 1., {}
            whole = scores(model, data).float().mean(0)
            label = int(whole.argmax()) if label is None else label
        for step in range(steps):
            # Denser at the beginning, where a key that was not there comes in: the way t^2, whose derivative is 2 t.
            way = (step + .5) / steps
            path.share, path.gates = way**2, {}
            with torch.enable_grad():
                score = scores(model, data).float().mean(0)[label]
                found = torch.autograd.grad(score, [path.tokens, *path.gates.values()])
            part = (found[0] * path.step).sum(-1).double().cpu() * (2 * way / steps)
            grid = grid + part if grid.numel() else part
            for i, gradient in zip(path.gates, found[1:]):
                layout, gradient = path.layouts[i], gradient.double().cpu() * (2 * way / steps)
                of_prompts = torch.cat([gradient[:layout.inner], gradient[layout.extra:]])
                for into, more in ((prompts, of_prompts), (kv, gradient[layout.inner:layout.extra])):
                    if len(more):
                        into[i] = into.get(i, 0) + more
        shape = tuple(blocks[0].tap.grid)
    leading = blocks[0].spec.extra_tokens
    return Attribution(label, grid.flatten(1)[:, leading:].sum(0).view(shape), prompts, kv,
                       float(whole[label] - nothing[label]))


# -- attention --------------------------------------------------------------------------------------------------------


@dataclass
class Attention:
    """Where the class token looks in one block.

    Attributes:
        grid: Weights of the grid tokens, (H, W) or (T, H, W).
        leading: Sum of the weights of the tokens in front of them.
        prompts: Sum of the weights of prompts and of further keys.
    """
    grid: Tensor
    leading: float
    prompts: float


@torch.no_grad()
def class_attention(model: nn.Module, data: Any) -> List[Attention]:
    """Attention weights of the class token in every block, mean over heads, views and frames; they add up to 1.

    Args:
        model: Classifier or recognizer with an attached backbone.
        data: See :func:`attribution`.

    Raises:
        ValueError: If the backbone has no class token, or attends in windows.
    """
    model = unwrap(model)
    backbone, _ = find_backbone(model)
    blocks = list(backbone.petl.blocks)
    if not blocks[0].spec.extra_tokens or blocks[0].spec.window is not None:
        raise ValueError(f'{type(backbone).__name__} has no class token that attends to all others')
    found: Dict[int, Attention] = {}

    def weigh(i: int, q: Tensor, k: Tensor, kwargs: Dict[str, Any]) -> None:
        """q (..., h, N, d), k (..., h, K, d) of block i on their way into its attention: keep what the first query,
        the class token's, sees."""
        layout, scale, mask = _Layout(blocks[i], q.shape[-2], k.shape[-2]), kwargs.get('scale'), kwargs.get('attn_mask')
        # Another attention than the block's own, or one of a further pass.
        if layout.extra < 0 or i in found:
            return
        logits = q[..., :1, :] @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        logits = logits if mask is None else logits + mask[..., :1, :]
        row = logits.float().softmax(-1).flatten(0, -2).mean(0).cpu()
        grid = row[layout.extra + layout.leading + layout.stream:]
        leading = float(row[layout.extra:layout.extra + layout.leading].sum())
        found[i] = Attention(grid.view(tuple(blocks[i].tap.grid)), leading, float(1 - grid.sum()) - leading)

    training = model.training
    model.eval()
    try:
        with _Seen(blocks, weigh).on():
            scores(model, data)
    finally:
        model.train(training)
    return [found[i] for i in range(len(blocks))]
