# SPDX-License-Identifier: Apache-2.0
"""The textbook form of every method, on plain upstream blocks: what the benchmark compares with.

``plain(model)`` takes a backbone with methods and returns a module that computes the same feature from the same
parameters, the way the published code does: attention is an explicit softmax, prompts travel through every feed-forward
network, Kronecker products are formed, scales and shifts keep their inputs, nothing is skipped, shared or recomputed.
Of our library it uses the parameters and the numbers in the configs, never its blocks, attention or method formulas.
"""

import copy
import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysValues = Optional[Tuple[Tensor, Tensor]]


# -- methods ----------------------------------------------------------------------------------------------------------


class PlainMethod:
    """One method's formulas; ``m`` holds its parameters. Without an override a point changes nothing."""

    def __init__(self, m: nn.Module) -> None:
        self.m = m

    def qkv(self, i: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tuple[Tensor, ...]:
        """Queries, keys and values (B, N, C) of normed tokens x."""
        ops = self.m.linear_ops(i)
        return tuple(self.linear(i, op, x, y) if op in ops else y for op, y in zip('qkv', (q, k, v)))

    def input(self, i: int, op: str, x: Tensor) -> Tensor:
        """What one linear op reads -> what it reads instead."""
        return x

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """Input and output of one linear op -> its output."""
        return y

    def norm(self, i: int, op: str, y: Tensor) -> Tensor:
        """Output of a norm or of the patch embedding -> the same."""
        return y

    def branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Stream before the sublayer, its normed input and its output -> its output."""
        return y

    def kv(self, i: int, batch: int) -> KeysValues:
        """Extra keys and values (B, heads, P, d) behind those of the tokens."""
        return None

    def prompts(self, i: int, batch: int) -> Optional[Tensor]:
        """Tokens (B, P, C) that replace the prompts in the stream."""
        return None


class PlainLoRA(PlainMethod):
    """y + s (x D^T) U^T."""

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        f = self.m.blocks[str(i)][op]
        x = self.m.drop(x)
        update = F.linear(F.linear(x, f.down), f.up)
        if f.anchored:  # PiSSA: what the factors were at the start is taken off
            update = update - F.linear(F.linear(x, f.start_down), f.start_up)
        return y + self.m.scales[i] * update


class PlainBottleneck(PlainMethod):
    """y + s A(z); z is the sublayer's output (Adapter), the stream or its normed form (AdaptFormer)."""

    def branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if sub not in self.m.branch_subs(i):
            return y
        f = self.m.blocks[str(i)][sub]
        z = y if not hasattr(self.m, 'input') else residual if self.m.input == 'residual' else x
        out = F.linear(f.drop(f.act(F.linear(f.norm_in(z), f.down.weight, f.down.bias))), f.up.weight, f.up.bias)
        return y + f.norm_out(out * f.scale)


class PlainPATT(PlainMethod):
    """k + s a_0, v + s a_1 with a = up(tanh(down(x)))."""

    def qkv(self, i: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tuple[Tensor, ...]:
        f, found = self.m.blocks[str(i)], dict(q=q, k=k, v=v)
        added = F.linear(torch.tanh(F.linear(x, f['down'].weight, f['down'].bias)), f['up'].weight, f['up'].bias)
        for op, part in zip(self.m.ops, added.chunk(len(self.m.ops), -1)):
            found[op] = found[op] + self.m.scales[i] * part
        return tuple(found[op] for op in 'qkv')


class PlainPrefix(PlainMethod):
    """Keys and values that an MLP makes of a table, for every sample anew."""

    def kv(self, i: int, batch: int) -> KeysValues:
        f, drop = self.m.blocks[str(i)], self.m.drop_rate
        if hasattr(f, 'keys_values'):
            k, v = (t.expand(batch, -1, -1, -1) for t in f.keys_values)
        else:
            table = f.table.expand(batch, -1, -1)
            hidden = torch.tanh(F.linear(table, f.down.weight, f.down.bias))
            both = F.linear(hidden, f.up.weight, f.up.bias).unflatten(-1, (2, self.m.specs[i].heads, -1))
            k, v = both.permute(2, 0, 3, 1, 4)
        return F.dropout(k, drop, self.m.training), F.dropout(v, drop, self.m.training)


class PlainVPT(PlainMethod):
    """Prompts in the stream of every block."""

    def prompts(self, i: int, batch: int) -> Optional[Tensor]:
        if str(i) not in self.m.prompts:
            return None
        p = self.m.prompts[str(i)]
        p = p if self.m.project is None else self.m.project(p)
        return F.dropout(p, self.m.drop_rate, self.m.training).expand(batch, -1, -1)


class PlainE2VPT(PlainMethod):
    """VPT's prompts times their masks, repeated for every sample, and key/value prompts in every head."""

    def prompts(self, i: int, batch: int) -> Optional[Tensor]:
        if str(i) not in self.m.prompts:
            return None
        p = F.dropout(self.m.prompts[str(i)], self.m.drop_rate, self.m.training).expand(batch, -1, -1)
        if str(i) not in self.m.pruned_layers:
            return p
        segments, width = self.m.segment_mask[self.m.kept], p.shape[-1] // self.m.segments
        interleaved = self.m.segment_layout == 'interleaved'
        mask = segments.repeat(1, width) if interleaved else segments.repeat_interleave(width, 1)
        return p * self.m.token_mask[self.m.kept][:, None].repeat(batch, 1, 1) * mask.repeat(batch, 1, 1)

    def kv(self, i: int, batch: int) -> KeysValues:
        if str(i) not in self.m.kv_prompts:
            return None
        kv = F.dropout(self.m.kv_prompts[str(i)], self.m.kv_drop_rate, self.m.training)
        return kv[0].expand(batch, -1, -1, -1), kv[-1].expand(batch, -1, -1, -1)


class PlainAPT(PlainMethod):
    """Prompts of one head, scaled by max(g, 1), in all heads."""

    def kv(self, i: int, batch: int) -> KeysValues:
        f, found = self.m.blocks[str(i)], []
        for row, prompt in enumerate((f.key, f.value)):
            p = self.m.drop(prompt)
            if f.scale is not None:
                s = f.scale[row][:, None]
                p = p * (s.exp() if self.m.reparam == 'exp' else torch.maximum(s, torch.ones_like(s)))
            found.append(p.expand(batch, self.m.specs[i].heads, -1, -1))
        return found[0], found[1]


class PlainKAdaptation(PlainMethod):
    """y + s x H + e with H = sum_j A_j (x) B_j, all n products formed; without dropout."""

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        m = self.m
        rule, own = m.rules[m.rule_name(i)][op], m.blocks[str(i)][m.ops[0] if m.tied else op]
        a, b = rule.left @ rule.right, own.left @ own.right
        kron = torch.einsum('jab,jcd->jacbd', a, b).flatten(1, 2).flatten(2)  # (n, Cin, Cout)
        delta = m.scale * (x @ kron.sum(0))
        delta = delta + m.biases[m.bias_name(i, op)] if m.bias else delta
        return y + (math.sqrt(m.specs[i].head_dim) if m.post_scale_q and op == 'q' else 1.) * delta


class PlainCompacter(PlainMethod):
    """y + PHM(gelu(PHM(LN(y)))), every H formed as a sum of Kronecker products."""

    def _phm(self, layer: nn.Module, x: Tensor) -> Tensor:
        a = layer.rule if self.m.rule is None else self.m.rule
        h = torch.einsum('jab,jcd->jacbd', a, layer.left @ layer.right).flatten(1, 2).flatten(2).sum(0)
        return x @ h + layer.bias

    def branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if sub not in self.m.branch_subs(i):
            return y
        f = self.m.blocks[str(i)][sub]
        return y + self._phm(f.up, F.gelu(self._phm(f.down, f.norm(y)), approximate='tanh'))


class PlainSSF(PlainMethod):
    """scale * y + shift after every operation."""

    def _ssf(self, i: int, op: str, y: Tensor) -> Tensor:
        if op not in self.m.blocks[str(i)]:
            return y
        f = self.m.blocks[str(i)][op]
        return y * f.scale + f.shift

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        return self._ssf(i, op, y)

    def norm(self, i: int, op: str, y: Tensor) -> Tensor:
        return self._ssf(i, op, y)


class PlainConvpass(PlainMethod):
    """y + s c(x): down, 3 x 3 convolution of the map and of every other token alone, up; act(t) = t sigmoid(1.702
    t)."""

    def branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if sub not in self.m.branch_subs(i):
            return y
        f, (h, w) = self.m.blocks[str(i)][sub], self.m.specs[i].grid

        def conv(t: Tensor) -> Tensor:
            return F.conv2d(t, f.conv.weight, f.conv.bias, padding=1)

        z = F.linear(x, f.down.weight, f.down.bias)
        z = z * torch.sigmoid(1.702 * z)
        front = z.shape[1] - h * w
        parts = [conv(z[:, t, :, None, None]).flatten(2).transpose(1, 2) for t in range(front)]
        parts.append(conv(z[:, front:].transpose(1, 2).unflatten(2, (h, w))).flatten(2).transpose(1, 2))
        z = torch.cat(parts, 1)
        z = f.drop(z * torch.sigmoid(1.702 * z))
        return y + self.m.scales[i] * F.linear(z, f.up.weight, f.up.bias)


class PlainFacT(PlainMethod):
    """y + s V dropout(M U x), U and V applied to every slice of every op."""

    def _slices(self, i: int, op: str) -> Tensor:
        """(slices, r out, r in): the small matrices of one op."""
        m, count = self.m, self.m.chunks if op in ('fc1', 'fc2') else 1
        if m.kind == 'tt':
            free = m.blocks[str(i)][op]
            return torch.stack(free.chunk(count, 1 if op == 'fc2' else 0))
        first = m.slots[i, op].start
        return torch.einsum('abc,cj->jba', m.core, m.mix[:, first:first + count])

    def linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        m, small = self.m, self._slices(i, op)
        count = len(small)
        if op == 'fc2':
            code = F.linear(F.linear(x.unflatten(-1, (count, -1)), m.u).flatten(-2), torch.cat(list(small), 1))
        else:
            code = F.linear(F.linear(x, m.u), small.flatten(0, 1))
        delta = F.linear(m.drop(code).unflatten(-1, (count if op == 'fc1' else 1, -1)), m.v).flatten(-2)
        return y + m.scales[i] * delta


FORMS: Dict[str, type] = dict(
    LoRA=PlainLoRA,
    Adapter=PlainBottleneck,
    AdaptFormer=PlainBottleneck,
    PATT=PlainPATT,
    Prefix=PlainPrefix,
    VPT=PlainVPT,
    E2VPT=PlainE2VPT,
    APT=PlainAPT,
    KAdaptation=PlainKAdaptation,
    Compacter=PlainCompacter,
    SSF=PlainSSF,
    Convpass=PlainConvpass,
    FacT=PlainFacT)
SIDES = ('SynQT', 'VQT', 'LST', 'ResTuningBypass')


# -- plain vision transformers ----------------------------------------------------------------------------------------


class PlainViT(nn.Module):
    """ViT, CLIP and VideoMAE, block by block as written in the papers; (B, 3, [T,] H, W) -> (B, C).

    Args:
        model: Backbone with methods; its parameters are used in place.
        explicit: Softmax attention written out; False calls the fused kernel.
    """

    def __init__(self, model: nn.Module, explicit: bool = True) -> None:
        super().__init__()
        self.model, self.explicit = model, explicit
        self.video = hasattr(model, 'blocks')
        if not self.video and model.out_type != 'cls_token':
            raise ValueError("the plain form reads the class token: build the backbone with out_type='cls_token'")

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Transformer blocks."""
        return self.model.blocks if self.video else self.model.layers

    def forward(self, x: Tensor) -> Tensor:
        forms = [FORMS[type(m).__name__](m) for m in self.model.petl.values()]
        x, inside = self.embed(x, forms), 0
        for i in range(len(self.blocks)):
            x, inside = self.enter(i, x, inside, forms)
            x = self.block(i, x, [f for f in forms if i in f.m.layers])
        return self.pool(x, inside, forms)

    def embed(self, x: Tensor, forms: Sequence[PlainMethod] = ()) -> Tensor:
        """Tokens that enter block 0, (B, N, C)."""
        model = self.model
        x = model.patch_embed.projection(x).flatten(2).transpose(1, 2)
        x = norms(forms, 0, 'embed', x)
        if self.video:
            return x + model.pos_embed
        if model.cls_token is not None:
            x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1)
        return model.pre_norm(x + model.pos_embed)

    def enter(self, i: int, x: Tensor, inside: int, forms: Sequence[PlainMethod]) -> Tuple[Tensor, int]:
        """Replace the ``inside`` prompts of the stream by those of block i."""
        new = [p for f in forms for p in [f.prompts(i, len(x))] if p is not None]
        if not new:
            return x, inside
        first = 0 if self.video else self.model.num_extra_tokens
        x = torch.cat([x[:, :first], *new, x[:, first + inside:]], 1)
        return x, sum(p.shape[1] for p in new)

    def block(self, i: int, x: Tensor, forms: Sequence[PlainMethod] = ()) -> Tensor:
        """Pre-norm block i."""
        block = self.blocks[i]
        h = norms(forms, i, 'norm1', block.norm1(x))
        x = x + branches(forms, i, 'attn', x, h, self.attention(i, h, forms))
        h = norms(forms, i, 'norm2', block.norm2(x))
        return x + branches(forms, i, 'ffn', x, h, self.feed_forward(i, h, forms))

    def project(self, i: int, h: Tensor, forms: Sequence[PlainMethod] = ()) -> List[Tensor]:
        """Queries, keys and values (B, N, C) of normed tokens."""
        attn = self.blocks[i].attn
        bias = attn.qkv.bias
        if self.video:
            bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
        read = [inputs(forms, i, op, h) for op in 'qkv']
        if all(x is h for x in read):
            return list(F.linear(h, attn.qkv.weight, bias).chunk(3, -1))
        biases = (None, ) * 3 if bias is None else bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip(read, attn.qkv.weight.chunk(3), biases)]

    def heads(self, i: int, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, d)."""
        return x.unflatten(-1, (self.blocks[i].attn.num_heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, N, d), (B, heads, M, d) twice -> (B, N, C)."""
        if self.explicit:
            y = ((q @ k.transpose(-2, -1)) * q.shape[-1]**-0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).flatten(2)

    def output(self, i: int, y: Tensor, forms: Sequence[PlainMethod] = ()) -> Tensor:
        """The attention's output projection."""
        block = self.blocks[i]
        y = inputs(forms, i, 'proj', y)
        y = linears(forms, i, 'proj', y, block.attn.proj(y))
        return (block.gamma_1 * y if hasattr(block, 'gamma_1') else y) if self.video else block.attn.gamma1(y)

    def attention(self, i: int, h: Tensor, forms: Sequence[PlainMethod] = ()) -> Tensor:
        """Self-attention of block i."""
        q, k, v = self.project(i, h, forms)
        for f in forms:
            q, k, v = f.qkv(i, h, q, k, v)
        q, k, v = (self.heads(i, t) for t in (q, k, v))
        for f in forms:
            extra = f.kv(i, len(h))
            if extra is not None:
                k, v = torch.cat([k, extra[0]], 2), torch.cat([v, extra[1]], 2)
        return self.output(i, self.attend(q, k, v), forms)

    def feed_forward(self, i: int, h: Tensor, forms: Sequence[PlainMethod] = ()) -> Tensor:
        """fc2(act(fc1(h)))."""
        block = self.blocks[i]
        (fc1, act, _), fc2 = (block.mlp if self.video else block.ffn).layers[:2]
        h = inputs(forms, i, 'fc1', h)
        mid = inputs(forms, i, 'fc2', act(linears(forms, i, 'fc1', h, fc1(h))))
        y = linears(forms, i, 'fc2', mid, fc2(mid))
        return (block.gamma_2 * y if hasattr(block, 'gamma_2') else y) if self.video else block.ffn.gamma2(y)

    def pool(self, x: Tensor, inside: int, forms: Sequence[PlainMethod] = ()) -> Tensor:
        """The feature: the normed class token, or the normed mean of the tokens (VideoMAE)."""
        model, last = self.model, len(self.blocks) - 1
        if not self.video:
            return norms(forms, last, 'final', layer_norm(model.ln1, x) if model.final_norm else x)[:, 0]
        x = x[:, inside:]
        if model.fc_norm is None:
            return norms(forms, last, 'final', layer_norm(model.norm, x))[:, 0]
        return norms(forms, last, 'final', layer_norm(model.fc_norm, model.norm(x).mean(1)))


def layer_norm(norm: nn.LayerNorm, y: Tensor) -> Tensor:
    """A LayerNorm without what we made of its class."""
    return F.layer_norm(y, y.shape[-1:], norm.weight, norm.bias, norm.eps)


def norms(forms: Sequence[PlainMethod], i: int, op: str, y: Tensor) -> Tensor:
    """All methods at one norm."""
    for f in forms:
        y = f.norm(i, op, y) if i in f.m.layers and op in f.m.norm_ops(i) else y
    return y


def inputs(forms: Sequence[PlainMethod], i: int, op: str, x: Tensor) -> Tensor:
    """All methods before one linear op; the same object where there is none."""
    for f in forms:
        x = f.input(i, op, x) if f.m.active('input', i) and op in f.m.input_ops(i) else x
    return x


def linears(forms: Sequence[PlainMethod], i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
    """All methods at one linear op."""
    for f in forms:
        y = f.linear(i, op, x, y) if f.m.active('linear', i) and op in f.m.linear_ops(i) else y
    return y


def branches(forms: Sequence[PlainMethod], i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """All methods beside or behind one sublayer."""
    for f in forms:
        y = f.branch(i, sub, residual, x, y)
    return y


# -- plain Swin transformers ------------------------------------------------------------------------------------------


class PlainSwin(nn.Module):
    """Upstream's own Swin or Video Swin (explicit window attention with bias and mask) with the formulas hooked onto
    its modules.

    Args:
        model: Backbone with methods that act on linears, norms and branches; it is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        family, blocks = self.model.petl.family, self.model.petl.blocks
        # Before the classes change: a method may ask blocks for frozen weights.
        forms = [FORMS[type(m).__name__](m) for m in self.model.petl.values()]
        upstream = {sited: plain for plain, sited in family.classes.items()}
        upstream[family.final_class] = nn.LayerNorm
        for module in self.model.modules():
            module.__class__ = upstream.get(type(module), type(module))
        self._seen: Dict[int, Tuple[Tensor, Tensor]] = {}
        for i, block in enumerate(blocks):
            self._hook(i, block, [f for f in forms if i in f.m.layers])

    def _hook(self, i: int, block: nn.Module, forms: Sequence[PlainMethod]) -> None:
        attn = getattr(block.attn, 'w_msa', block.attn)
        ffn = block.mlp if hasattr(block, 'mlp') else block.ffn
        fc1, fc2 = (ffn.fc1, ffn.fc2) if hasattr(ffn, 'fc1') else (ffn.layers[0][0], ffn.layers[1])

        def qkv(module: nn.Module, args: Any, y: Tensor) -> Tensor:
            parts: Sequence[Tensor] = y.chunk(3, -1)
            for f in forms:
                parts = f.qkv(i, args[0], *parts)
            return torch.cat(list(parts), -1)

        def remember(module: nn.Module, args: Any, y: Tensor) -> None:
            self._seen[i] = (args[0], y)

        attn.qkv.register_forward_hook(qkv)
        for op, module in (('proj', attn.proj), ('fc1', fc1), ('fc2', fc2)):
            module.register_forward_hook(lambda module, args, y, op=op: linears(forms, i, op, args[0], y))
        block.norm2.register_forward_hook(remember)
        whole = ffn if hasattr(block, 'mlp') else fc2
        whole.register_forward_hook(lambda module, args, y: branches(forms, i, 'ffn', *self._seen[i], y))

    def forward(self, x: Tensor) -> Any:
        out = self.model(x)
        self._seen.clear()
        return out


def _hooks_suffice(method: nn.Module) -> bool:
    """Whether a method acts on linear ops and on the feed-forward sublayer alone."""
    acts_on_attention = 'branch' in method.points() and any('attn' in method.branch_subs(i) for i in method.layers)
    return type(method).__name__ in FORMS and method.points() <= {'qkv', 'linear', 'branch'} and not acts_on_attention


def plain(model: nn.Module) -> Optional[nn.Module]:
    """The textbook form of a backbone with methods; None where this file has none.

    Args:
        model: Backbone of the registered types.
    """
    from benchmark_plain_weights import MORE
    FORMS.update(MORE)
    methods = list(model.petl.values())
    if any(m.active('channels', i) for m in methods for i in m.layers):
        return None
    if model.petl.family_name in ('swin', 'video_swin'):
        return PlainSwin(model) if all(_hooks_suffice(m) for m in methods) else None
    if any(type(m).__name__ in SIDES for m in methods):
        from benchmark_plain_side import PlainSide
        return PlainSide(model)
    return PlainViT(model) if all(type(m).__name__ in FORMS for m in methods) else None
