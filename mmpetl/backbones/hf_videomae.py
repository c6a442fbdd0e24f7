# SPDX-License-Identifier: Apache-2.0
"""VideoMAEModel of transformers, specialised in place."""

from typing import Any, List, Optional

from torch import Tensor, nn
from transformers.models.videomae import modeling_videomae as videomae

from ..sites import BlockSpec
from .block import Linear, of_linear
from .foreign import check_type, gelu_network, sited
from .hf import HFAttention, HFForm, HFLayer, HFPatchEmbed, HFSide, NamedNorms, frames_first, specs_of, tower_family

_LAYERS = dict(q='query', k='key', v='value')


class VideoAttention(HFAttention):
    """Attention of VideoMAEModel: projections in one module, the output in another."""

    def layer(self, op: str) -> nn.Linear:
        # Through _modules: 'attention' and 'output' are names of methods of the mixins.
        inner = self._modules
        return inner['output'].dense if op == 'proj' else getattr(inner['attention'], _LAYERS[op])

    @property
    def heads(self) -> int:
        return self._modules['attention'].num_attention_heads

    @property
    def logit_scale(self) -> Optional[float]:
        return self._modules['attention'].scaling

    @property
    def attention_drop_rate(self) -> float:
        return self._modules['attention'].dropout_prob


class VideoLayer(NamedNorms, HFLayer):
    """Layer of VideoMAEModel."""

    def drop_path_of(self, sub: str) -> nn.Module:
        # There is no drop-path; dropout stands in its place, at the end of either branch.
        return (self.attn._modules['output'] if sub == 'attn' else self.output).dropout

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return gelu_network(self.tap, self.intermediate.dense, self.intermediate.intermediate_act_fn, self.output.dense,
                            h)

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return of_linear((self.intermediate if op == 'fc1' else self.output).dense)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """hidden_states (B, N, C) -> (B, N, C)."""
        return self.run(hidden_states)


def _check(model: nn.Module) -> None:
    for i, layer in enumerate(model.encoder.layer):
        # Also the sited class: a backbone may be asked about again after it was attached.
        check_type(f'encoder.layer.{i}.attention', layer._modules['attention'], videomae.VideoMAEAttention,
                   *_ATTENTION.values())


def _specs(model: nn.Module) -> List[BlockSpec]:
    # VideoMAE has biases of q and v only, whatever qkv_bias says.
    return specs_of(model.config, list(model.encoder.layer), model.config.intermediate_size, key_bias=False)


_ATTENTION = sited(globals(), 'Sited', VideoAttention, videomae.VideoMAEAttention)
FAMILY = tower_family(
    name='hf_videomae',
    classes={
        **sited(globals(), 'Sited', VideoLayer, videomae.VideoMAELayer),
        **_ATTENTION,
        **sited(globals(), 'Sited', HFPatchEmbed, videomae.VideoMAEPatchEmbeddings),
    },
    sides=sited(globals(), 'Side', HFSide, videomae.VideoMAEModel),
    forms=sited(globals(), 'Form', HFForm, videomae.VideoMAEModel),
    specs=_specs,
    check=_check,
    clip_axes=frames_first,
)
