# SPDX-License-Identifier: Apache-2.0
"""The waist: what a method may know about a backbone, and the named points at which it may act.

A :class:`Method` is a hook on the forward pass of a frozen transformer. It is built from a list of :class:`BlockSpec`
and overrides only the points it needs. A :class:`Tap` is what one block sees of all methods. Backbones call taps,
methods never see a backbone.

Order of the points in one block (``T`` = tap; an empty tap is the identity at no cost)::

    x -- T.stream - T.prompts -+- norm1 - T.norm - h - attention(h) - T.branch('attn') -(+)-+- norm2 - T.norm - h -
    ffn(h) - T.branch('ffn') -(+)-->
                               +---------------------------------------------------------+
                               +---------------------------------------------------------+
    block 0 gets: tokens with class token and positions - T.entry
    clips, by images: T.images before the patch embedding, T.pool of their features
    op(h):        T.input - W h + b - T.linear                            op: q, k, v, proj, fc1, fc2, gate
    attention(h): q, k, v - T.qkv - heads - rotation - T.kv - softmax(q k^T + bias) v - proj - drop-path
    ffn(h):       fc1 - act - fc2 - drop-path, or act(gate) * fc1 - fc2 - drop-path

Own words, all of them: a *point* is a place in a block where methods may act, a *tap* is what one block sees of all
methods, a *sited* class is an upstream class whose forward pass calls taps.
"""

from .half import AS_THEY_ARE, HalfCopies, as_given, autocast_dtype, cast_together, layer_norm, new_pass
from .method import Method
from .options import Layers, PerLayer, check_ops, nearest, parse_layers, per_layer, positive
from .product import (
    add_product,
    beside,
    forked,
    own_gradient,
    product_as,
    scale_about,
    scale_shift,
    scaled,
    scaled_product,
    sum_as,
)
from .spec import ALL_OPS, CLIP_POINTS, NORMS, OPS, POINTS, SUBS, BlockSpec
from .tap import RunTime, Tap, plan_prompts
from .update import Update

__all__ = [
    'ALL_OPS', 'AS_THEY_ARE', 'BlockSpec', 'CLIP_POINTS', 'HalfCopies', 'Layers', 'Method', 'NORMS', 'OPS',
    'POINTS', 'PerLayer', 'RunTime', 'SUBS', 'Tap', 'Update', 'add_product', 'as_given', 'autocast_dtype', 'beside',
    'cast_together', 'check_ops', 'forked', 'layer_norm', 'nearest', 'new_pass', 'own_gradient', 'parse_layers',
    'per_layer', 'plan_prompts', 'positive', 'product_as', 'scale_about', 'scale_shift', 'scaled', 'scaled_product',
    'sum_as'
]
