# SPDX-License-Identifier: Apache-2.0
"""CLIP's text tower, only as much as is needed to turn class names into text features once."""

import re
from typing import Callable, Dict, List, Mapping, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .text_features import TextFeatures, class_weights

#: Hugging Face names -> those of OpenAI, which this module uses.
HF_NAMES = (
    (r'text_model\.embeddings\.token_embedding\.weight', 'token_embedding.weight'),
    (r'text_model\.embeddings\.position_embedding\.weight', 'positional_embedding'),
    (r'text_model\.final_layer_norm\.(.*)', r'ln_final.\1'),
    (r'text_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.(.*)', r'transformer.resblocks.\1.ln_\2.\3'),
    (r'text_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)', r'transformer.resblocks.\1.attn.out_proj.\2'),
    (r'text_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.(.*)', r'transformer.resblocks.\1.mlp.c_fc.\2'),
    (r'text_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.(.*)', r'transformer.resblocks.\1.mlp.c_proj.\2'),
)


def from_hf(state: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """The text part of a Hugging Face CLIP state dict, in OpenAI's names."""
    found: Dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, target in HF_NAMES:
            if re.fullmatch(pattern, name):
                found[re.sub(pattern, target, name)] = value
    for kind in ('weight', 'bias'):  # q, k and v are one matrix in OpenAI's files
        for name in [
                n for n in state if re.fullmatch(rf'text_model\.encoder\.layers\.\d+\.self_attn\.q_proj\.{kind}', n)
        ]:
            layer = name.split('.')[3]
            parts = [state[name.replace('q_proj', f'{op}_proj')] for op in 'qkv']
            found[f'transformer.resblocks.{layer}.attn.in_proj_{kind}'] = torch.cat(parts)
    found['text_projection'] = state['text_projection.weight'].t()
    if 'logit_scale' in state:
        found['logit_scale'] = state['logit_scale']
    return found


class _Block(nn.Module):
    """Pre-norm transformer block with a causal mask."""

    def __init__(self, dim: int, heads: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.ModuleDict(dict(c_fc=nn.Linear(dim, 4 * dim), c_proj=nn.Linear(4 * dim, dim)))
        self.act = act

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp['c_proj'](self.act(self.mlp['c_fc'](self.ln_2(x))))


def quick_gelu(x: Tensor) -> Tensor:
    """x (...) -> x * sigmoid(1.702 x), (...), OpenAI's activation."""
    return x * torch.sigmoid(1.702 * x)


class CLIPTextTower(nn.Module):
    """Token ids (B, N) -> text features (B, E). Parameter names are OpenAI's.

    Args:
        vocab: Size of the vocabulary.
        context: Longest text N in tokens.
        dim: Width.
        layers: Number of blocks.
        heads: Attention heads.
        out_dim: Width E of the space shared with images.
        act: 'quick_gelu' (OpenAI) or 'gelu' (most of LAION's models).
    """

    def __init__(self,
                 vocab: int,
                 context: int,
                 dim: int,
                 layers: int,
                 heads: int,
                 out_dim: int,
                 act: str = 'quick_gelu') -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, dim)
        self.positional_embedding = nn.Parameter(torch.zeros(context, dim))
        function = quick_gelu if act == 'quick_gelu' else F.gelu
        self.transformer = nn.ModuleDict(
            dict(resblocks=nn.ModuleList(_Block(dim, heads, function) for _ in range(layers))))
        self.ln_final = nn.LayerNorm(dim)
        self.text_projection = nn.Parameter(torch.zeros(dim, out_dim))
        self.logit_scale = nn.Parameter(torch.tensor(0.))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, N), ids -> (B, E)."""
        count = tokens.shape[1]
        mask = torch.full((count, count), float('-inf'), device=tokens.device).triu(1)
        x = self.token_embedding(tokens) + self.positional_embedding[:count]
        for block in self.transformer['resblocks']:
            x = block(x, mask)
        # The end-of-text token has the largest id.
        return self.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)] @ self.text_projection


def build_text_tower(state: Mapping[str, Tensor], act: str = 'quick_gelu') -> CLIPTextTower:
    """The text tower of a CLIP state dict in the names of OpenAI, open_clip or Hugging Face.

    Args:
        state: State dict; what does not belong to the text tower is left alone.
        act: See :class:`CLIPTextTower`.

    Raises:
        ValueError: If the state dict holds no text tower, or a part of it only.
    """
    if 'text_model.final_layer_norm.weight' in state:
        state = from_hf(state)
    if 'token_embedding.weight' not in state or 'text_projection' not in state:
        raise ValueError(
            'the weight file holds no CLIP text tower (token_embedding.weight and text_projection are missing)')
    vocab, dim = state['token_embedding.weight'].shape
    layers = len({n.split('.')[2] for n in state if n.startswith('transformer.resblocks.')})
    # No file states the number of heads: all of CLIP's are 64 wide.
    tower = CLIPTextTower(vocab, len(state['positional_embedding']), dim, layers, max(dim // 64, 1),
                          state['text_projection'].shape[1], act)
    own = {n: state[n].float() for n in tower.state_dict() if n in state}
    missing = tower.load_state_dict(own, strict=False).missing_keys
    if set(missing) - {'logit_scale'}:  # the temperature is no part of the tower
        raise ValueError(f'the weight file holds a part of a CLIP text tower only: {missing[0]} is missing')
    return tower.eval()


Tokenizer = Callable[[List[str]], Tensor]


@torch.no_grad()
def encode_classes(tower: CLIPTextTower,
                   tokenize: Tokenizer,
                   classes: Sequence[str],
                   templates: Sequence[str],
                   model: str = '',
                   sha256: str = '',
                   suffixes: Optional[Mapping[str, Sequence[str]]] = None) -> TextFeatures:
    """Text features of classes: every template filled with every name, averaged per class.

    Args:
        tower: Text tower.
        tokenize: Texts -> token ids (B, N), cut to the tower's context.
        classes: Class names.
        templates: Templates with one ``{}``.
        model: Name of the model, for the file.
        sha256: Digest of its weights, for the file.
        suffixes: Texts to append to every template of a class; a class with several is averaged over all pairs.

    Raises:
        ValueError: If a template has no ``{}``.
    """
    for template in templates:
        if '{}' not in template:
            raise ValueError(f'template {template!r} has no {{}} for the class name')
    device = tower.ln_final.weight.device
    rows = []
    for name in classes:
        texts = [t.replace('{}', name) + end for end in (suffixes or {}).get(name) or [''] for t in templates]
        rows.append(class_weights(tower(tokenize(texts).to(device))[None])[0])
    return TextFeatures(
        torch.stack(rows).cpu(), tuple(classes), tuple(templates), float(tower.logit_scale), model,
        sha256)
