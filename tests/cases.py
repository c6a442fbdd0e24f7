# SPDX-License-Identifier: Apache-2.0
"""The table of methods x backbones. Generic tests run over it, and the README's support table is generated from it.

A new method is one row in ``METHODS``, a new backbone one row in ``BACKBONES``.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import torch

VIT_ARCH = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64)
SWIN_ARCH = dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4])


@dataclass(frozen=True)
class Backbone:
    """One backbone: registered type, tiny arguments, input shape, feature width, real-size arguments; ``like``: the
    backbone of ``BACKBONES`` whose methods it carries, ``without`` some; ``only``: those that the tests run with;
    ``unmerged``: those that do not merge into it; ``graphs``: those that the default run compiles, empty: all of
    ``only``."""
    name: str
    type: str
    kwargs: Dict[str, Any]
    shape: Tuple[int, ...]
    width: int
    title: str
    upstream: Callable[..., Any]
    real: Dict[str, Any] = field(default_factory=dict)
    like: str = ''
    without: Tuple[str, ...] = ()
    only: Tuple[str, ...] = ()
    unmerged: Tuple[str, ...] = ()
    graphs: Tuple[str, ...] = ()

    def allows(self, case: 'Case') -> bool:
        """Whether a method is defined on this base, which is like one of ``BACKBONES``."""
        return bool({self.like, self.name} & set(case.on)) and case.name not in self.without

    def carries(self, case: 'Case') -> bool:
        """Whether all generic tests of a case run on this base."""
        return self.allows(case) and (not self.only or case.name in self.only)

    def build(self, petl: Sequence[Any] = (), **options: Any) -> Any:
        from mmpetl.registry import MODELS
        return MODELS.build({'type': self.type, 'petl': list(petl), **self.kwargs, **options})

    def build_upstream(self, **options: Any) -> Any:
        return self.upstream(**{**self.kwargs, **options})

    def inputs(self, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _vit(**kwargs: Any) -> Any:
    from mmpretrain.models import VisionTransformer
    return VisionTransformer(**kwargs)


def _clip(**kwargs: Any) -> Any:
    from mmpretrain.models import VisionTransformer
    return VisionTransformer(
        pre_norm=True,
        norm_cfg=dict(type='LN', eps=1e-5),
        layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')),
        **kwargs)


def _clip_frames(frames: int, **kwargs: Any) -> Any:
    """CLIP over the frames of clips, one by one, and the mean of their features."""
    model = _clip(**kwargs)

    class OverFrames(type(model)):  # type: ignore[misc]

        def forward(self, x: torch.Tensor) -> Any:
            forward = super().forward
            return (torch.stack([forward(x[:, :, t])[-1] for t in range(x.shape[2])]).mean(0), )

    model.__class__ = OverFrames
    return model


def _swin(**kwargs: Any) -> Any:
    from mmpretrain.models import SwinTransformer
    return SwinTransformer(**kwargs)


def _deit3(**kwargs: Any) -> Any:
    from mmpretrain.models import DeiT3
    return DeiT3(**kwargs)


def _beit(**kwargs: Any) -> Any:
    from mmpretrain.models import BEiTViT
    return BEiTViT(**kwargs)


def _eva02(**kwargs: Any) -> Any:
    from mmpretrain.models import ViTEVA02
    return ViTEVA02(**kwargs)


def _swin_v2(**kwargs: Any) -> Any:
    """Without the hook that takes tables out of every state dict, after which upstream itself misses them."""
    from mmpretrain.models import SwinTransformerV2
    model = SwinTransformerV2(**kwargs)
    model._load_state_dict_pre_hooks.clear()
    return model


def _mvit(**kwargs: Any) -> Any:
    from mmpretrain.models import MViT
    return MViT(**kwargs)


def _video_mvit(**kwargs: Any) -> Any:
    from mmaction.models.backbones.mvit import MViT
    return MViT(**kwargs)


def _uniformer(**kwargs: Any) -> Any:
    from mmaction.models.backbones.uniformerv2 import UniFormerV2
    return UniFormerV2(**kwargs)


def _videomae(**kwargs: Any) -> Any:
    from mmaction.models.backbones.vit_mae import VisionTransformer
    return VisionTransformer(**kwargs)


def _video_swin(**kwargs: Any) -> Any:
    from mmaction.models.backbones.swin import SwinTransformer3D
    return SwinTransformer3D(**{'pretrained2d': False, **kwargs})


def _timm(model_name: str, **kwargs: Any) -> Any:
    import timm
    return timm.create_model(model_name, num_classes=0, **kwargs)


def _hf(config: Dict[str, Any]) -> Any:
    import transformers

    from mmpetl.backbones.foreign_build import TOWERS
    settings = dict(config)
    kind = settings.pop('model_type')
    built = transformers.AutoConfig.for_model(kind, **settings)
    model = getattr(transformers, TOWERS[kind])(built, **({'add_pooling_layer': False} if kind == 'vit' else {}))
    if kind in ('videomae', 'vjepa2', 'timesformer'):  # as backbones they take and give what mmaction2's do
        model.register_forward_pre_hook(lambda _, args: (args[0].transpose(1, 2), ))
    if kind in ('videomae', 'vjepa2'):
        model.register_forward_hook(lambda _, args, out: out.last_hidden_state.mean(1))
    return model


_VIT = dict(arch=VIT_ARCH, img_size=32, patch_size=8)
BACKBONES: List[Backbone] = [
    Backbone('vit', 'mmpetl.VisionTransformer', _VIT, (3, 32, 32), 32, 'ViT', _vit, dict(arch='base')),
    Backbone('clip', 'mmpetl.CLIPVisionTransformer', _VIT, (3, 32, 32), 32, 'CLIP', _clip, dict(arch='base')),
    Backbone('swin', 'mmpetl.SwinTransformer',
             dict(arch=SWIN_ARCH, img_size=32, window_size=4, out_indices=(1, ), drop_path_rate=0.), (3, 32, 32), 32,
             'Swin', _swin, dict(arch='base')),
    Backbone('videomae', 'mmpetl.VideoMAE',
             dict(img_size=32, patch_size=8, embed_dims=32, depth=3, num_heads=4, mlp_ratio=2, num_frames=4),
             (3, 4, 32, 32), 32, 'VideoMAE', _videomae, dict(num_frames=16)),
    Backbone('video_swin', 'mmpetl.SwinTransformer3D',
             dict(arch=SWIN_ARCH, window_size=(2, 4, 4), out_indices=(1, ), drop_path_rate=0.), (3, 8, 36, 36), 32,
             'Video Swin', _video_swin, dict(arch='base'), unmerged=('RepAdapter', 'ARC')),
]
_TIMM_VIT = dict(init_values=0.5, img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2.)
_HF_VIT = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8)
SIDE = ('SynQT', 'LST', 'VQT', 'Res-Tuning-Bypass')
#: linear, branch, qkv, kv, prompts, norm, side.
ONE_PER_POINT = ('LoRA', 'AdaptFormer', 'PATT', 'Prefix', 'VPT', 'SSF', 'VQT')


def _foreign(name: str, kwargs: Dict[str, Any], title: str, shape: Tuple[int, ...] = (3, 32, 32), **fields: Any) -> Backbone:
    hf = name.startswith('hf_')
    real = dict(config=dict(model_type=kwargs['model_type'])) if hf else dict(model_name=kwargs['model_name'])
    return Backbone(name, 'mmpetl.HF' if hf else 'mmpetl.TIMM', dict(config=kwargs) if hf else kwargs, shape, 32, title,
                    _hf if hf else _timm, real, **{'like': 'vit', **fields})


_VJEPA2 = dict(
    model_type='vjepa2', crop_size=32, patch_size=8, frames_per_clip=4, tubelet_size=2, hidden_size=32,
    num_attention_heads=2, num_hidden_layers=2, mlp_ratio=2, pred_hidden_size=24, pred_num_hidden_layers=1,
    pred_num_attention_heads=2)
#: What the generic tests run on backbones that share the blocks of others; tests/backbones/test_sister_classes.py has all
#: other methods in one short test each.
SHORT = ('LoRA', 'AdaptFormer', 'Prefix', 'VPT', 'SSF')
_SWIN_V2 = dict(
    arch=dict(SWIN_ARCH, extra_norm_every_n_blocks=2), img_size=32, window_size=4, out_indices=(1, ), drop_path_rate=0.,
    pretrained_window_sizes=[0, 0])
_TIMM_SWIN = dict(img_size=32, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, drop_path_rate=0.)
_HF_SWIN = dict(model_type='swin', image_size=32, **{k: v for k, v in _TIMM_SWIN.items() if k != 'img_size'})
_HIERA = dict(model_name='hiera_tiny_224', img_size=32, embed_dim=16, num_heads=2, stages=(1, 2), q_pool=1,
              mask_unit_size=(2, 2), mask_unit_attn=(True, False))
_UNIFORMER = dict(
    input_resolution=32, patch_size=8, width=32, layers=3, heads=2, t_size=4, n_layers=2, n_dim=32, n_head=2, return_list=[1, 2],
    mlp_dropout=[0., 0.], no_lmhra=False, double_lmhra=True, clip_pretrained=False)
_MVIT = dict(embed_dims=16, num_layers=3, num_heads=2, downscale_indices=[1])
#: Backbones that are like others: one row per family; tests/backbones has short rows for further classes.
FOREIGN: List[Backbone] = [
    Backbone('deit3', 'mmpetl.DeiT3', dict(use_layer_scale=False, **_VIT), (3, 32, 32), 32, 'mmpretrain `DeiT3`', _deit3, dict(arch='base'), like='vit',
             only=SHORT, graphs=('LoRA', ), unmerged=('SSF', 'LoRA + SSF', 'RLRR')),
    Backbone('beit', 'mmpetl.BEiTViT', _VIT, (3, 32, 32), 32, 'mmpretrain `BEiTViT` (BEiT, BEiT v2)', _beit,
             dict(arch='base'), like='vit', without=SIDE, only=SHORT, graphs=('VPT', )),
    Backbone('eva02', 'mmpetl.ViTEVA02', dict(sub_ln=True, **_VIT), (3, 32, 32), 32, 'mmpretrain `ViTEVA02`', _eva02,
             dict(arch='base'), like='vit', without=SIDE, only=SHORT, graphs=('VPT', )),
    Backbone('swin_v2', 'mmpetl.SwinTransformerV2', _SWIN_V2, (3, 32, 32), 32, 'mmpretrain `SwinTransformerV2`',
             _swin_v2, dict(arch='base'), like='swin', without=('RepAdapter', 'ARC', 'DiffFit'), only=(*SHORT, 'PATT', 'E2VPT'),
             graphs=('VPT', ), unmerged=('SSF', 'LoRA + SSF', 'RLRR', 'GLoRA')),
    Backbone('mvit', 'mmpetl.MViT', dict(arch=_MVIT, img_size=32, out_scales=(1, )), (3, 32, 32), 32, 'mmpretrain `MViT` (MViT v2)',
             _mvit, dict(arch='base'), like='swin', without=('VPT', 'E2VPT', 'VPT + LoRA', 'Prefix-qk', 'Convpass'),
             only=('LoRA', 'AdaptFormer', 'Prefix', 'SSF', 'PATT'), graphs=('Prefix', ), unmerged=('RepAdapter', 'ARC')),
    Backbone('video_mvit', 'mmpetl.VideoMViT',
             dict(arch=_MVIT, spatial_size=32, temporal_size=4, out_scales=(1, ), output_cls_token=False), (3, 4, 32, 32), 32,
             'mmaction2 `MViT` (MViT v2)', _video_mvit, dict(arch='base'), like='video_swin', without=('Prefix-qk', ),
             only=('LoRA', 'AdaptFormer', 'Prefix', 'SSF', 'ST-Adapter'), graphs=('SSF', ), unmerged=('RepAdapter', 'ARC')),
    Backbone('uniformer_v2', 'mmpetl.UniFormerV2', _UNIFORMER, (3, 4, 32, 32), 32, 'mmaction2 `UniFormerV2`', _uniformer,
             dict(clip_pretrained=False), like='clip', without=SIDE, only=SHORT, graphs=('LoRA', )),
    _foreign('timm_vit', dict(model_name='vit_small_patch14_reg4_dinov2', **_TIMM_VIT),
           'timm `VisionTransformer` (AugReg, DeiT 3, DINOv2, CLIP, SigLIP)'),
    _foreign('timm_swin', dict(model_name='swin_tiny_patch4_window7_224', **_TIMM_SWIN),
           'timm `SwinTransformer`, `SwinTransformerV2`', like='swin', only=SHORT, graphs=('LoRA', )),
    _foreign('timm_hiera', _HIERA, 'timm `Hiera`', like='swin', without=('Convpass', ), only=SHORT, graphs=('VPT', ),
             unmerged=('RepAdapter', 'ARC')),
    _foreign('hf_swin', _HF_SWIN, 'transformers `SwinModel`, `Swinv2Model`', like='swin', only=SHORT, graphs=('LoRA', )),
    _foreign('hf_vit', dict(model_type='vit', **_HF_VIT),
           'transformers `ViTModel`, `DeiTModel`, `ViTMSNModel`, `IJepaModel`, `Dinov2Model`, `Dinov2WithRegistersModel`, `VivitModel`'),
    _foreign('hf_clip', dict(model_type='clip_vision_model', **_HF_VIT),
           'transformers `CLIPVisionModel`, `SiglipVisionModel`'),
    _foreign('hf_videomae',
           dict(model_type='videomae', num_frames=4, tubelet_size=2, use_mean_pooling=False, **_HF_VIT),
           'transformers `VideoMAEModel`', (3, 4, 32, 32), like='videomae'),
    _foreign('timm_eva', dict(model_name='eva02_tiny_patch14_224', scale_mlp=True, **_TIMM_VIT),
           'timm `Eva` (EVA, EVA-02, DINOv3, PE)', without=SIDE, unmerged=('SSF', 'LoRA + SSF', 'RepAdapter', 'ARC', 'RLRR', 'GLoRA')),
    _foreign('hf_dinov3',
           dict(model_type='dinov3_vit', num_register_tokens=2, use_gated_mlp=True, key_bias=True, **_HF_VIT),
           'transformers `DINOv3ViTModel`', without=SIDE, only=ONE_PER_POINT),
    _foreign('hf_timesformer', dict(model_type='timesformer', num_frames=4, **_HF_VIT),
           'transformers `TimesformerModel`', (3, 4, 32, 32), like='videomae', without=SIDE, only=SHORT,
           graphs=('LoRA', )),
    _foreign('hf_vjepa2', _VJEPA2, 'transformers `VJEPA2Model`', (3, 4, 32, 32), like='videomae', without=SIDE,
           only=ONE_PER_POINT),
]
FOREIGN.append(
    Backbone('clip_frames', 'mmpetl.CLIPVisionTransformer', dict(frames=4, **_VIT), (3, 4, 32, 32), 32,
             'mmpretrain ViT and CLIP over the frames of clips (`frames=T`)', _clip_frames, dict(arch='base', frames=8),
             like='clip', without=SIDE, only=('LoRA', 'AIM', 'ST-Adapter', 'ZeroI2V', 'DualPath', 'Side4Video')))
BACKBONE = {b.name: b for b in BACKBONES}
ROW = {b.name: b for b in [*BACKBONES, *FOREIGN]}
ALL = tuple(BACKBONE)
VITS = ('vit', 'clip', 'videomae')
IMAGES = ('vit', 'clip', 'swin')


@dataclass(frozen=True)
class Case:
    """One method as the generic tests use it.

    Attributes:
        name: Row of the table.
        petl: Tiny configs.
        on: Backbones that carry it; on the others it must be refused by name.
        identity: Whether the start equals the frozen base.
        folds: Whether it merges into the base.
        real: Configs at published size, for counts.
        counts: Published or derived counts of ``real``, by backbone of real size.
        without_gradient: Parts of names of parameters that mathematics leaves without gradient.
        from_base: Parts of names of parameters whose start is worked out from the base's weights.
        note: Why it is not on the other backbones.
        often: Backbones with which the default run tests it, the others only with ``-m slow``; empty: all.
    """
    name: str
    petl: List[Dict[str, Any]]
    on: Tuple[str, ...] = ALL
    identity: bool = True
    folds: bool = False
    real: List[Dict[str, Any]] = field(default_factory=list)
    counts: Dict[str, int] = field(default_factory=dict)
    without_gradient: Tuple[str, ...] = ()
    from_base: Tuple[str, ...] = ()
    note: str = ''
    often: Tuple[str, ...] = ()

    def is_slow(self, backbone: Backbone) -> bool:
        """Whether a backbone waits for ``-m slow``."""
        return bool(self.often) and backbone.name not in self.often


OFTEN = ('vit', 'video_swin')
METHODS: List[Case] = [
    Case(
        'LoRA', [dict(type='LoRA', rank=2, ops='q,k,v,proj,fc1,fc2', alpha=4)],
        folds=True,
        real=[dict(type='LoRA', rank=4, ops='qv')],
        counts=dict(vit=147_456, clip=147_456, videomae=147_456, video_swin=48_128 * 4)),
    Case(
        'PiSSA', [dict(type='LoRA', rank=2, ops='q,k,v,proj,fc1,fc2', alpha=4, init='pissa')],
        folds=True,
        from_base=('down', 'up'),
        real=[dict(type='LoRA', rank=4, ops='qv', init='pissa')],
        counts=dict(vit=147_456)),
    Case(
        'rsLoRA', [dict(type='LoRA', rank=4, alpha=4, rank_stabilized=True)],
        folds=True,
        real=[dict(type='LoRA', rank=16, ops='qv', alpha=16, rank_stabilized=True)],
        counts=dict(vit=589_824)),
    Case(
        'DoRA', [dict(type='DoRA', rank=2, ops='q,k,v,proj,fc1,fc2', alpha=4)],
        folds=True,
        from_base=('magnitude', ),
        real=[dict(type='DoRA', rank=4, ops='qv')],
        counts=dict(vit=165_888, videomae=165_888)),
    Case(
        'VeRA', [dict(type='VeRA', rank=8, ops='q,k,v,proj,fc1,fc2')],
        folds=True,
        real=[dict(type='VeRA')],
        counts=dict(vit=24_576)),
    Case(
        'Adapter', [dict(type='Adapter', mid_dims=4)],
        real=[dict(type='Adapter', mid_dims=64, kind='pfeiffer')],
        counts=dict(vit=1_189_632, video_swin=1_553_664)),
    Case(
        'AdaptFormer', [dict(type='AdaptFormer', mid_dims=4)],
        real=[dict(type='AdaptFormer', mid_dims=64)],
        counts=dict(vit=1_189_632, video_swin=1_553_664)),
    Case(
        'Adapter+', [dict(type='AdapterPlus', mid_dims=4)],
        identity=False,
        real=[dict(type='AdapterPlus')],
        counts=dict(vit=165_984)),
    Case(
        'ST-Adapter', [dict(type='STAdapter', mid_dims=4, kernel=(3, 3, 3), subs=('attn', 'ffn'))],
        on=('videomae', 'video_swin', 'clip_frames'),
        real=[dict(type='STAdapter')],
        counts=dict(videomae=7_110_144),
        # Behind the last attention the class token of CLIP reads no grid token any more.
        without_gradient=('blocks.2.ffn', ),
        note='images: the convolution runs over time; it runs over clips of them, see below'),
    Case(
        'AIM', [dict(type='AIM', mid_dims=4)],
        on=('clip_frames', ),
        real=[dict(type='AIM')],
        counts=dict(clip_frames=10_657_536),
        note='it adapts a backbone for images to clips, see below'),
    Case(
        'ZeroI2V', [dict(type='ZeroI2V', mid_dims=4, drop_rate=0.)],
        on=('clip_frames', ),
        identity=False,
        real=[dict(type='ZeroI2V')],
        counts=dict(clip_frames=14_208_000),
        note='it adapts a backbone for images to clips, see below'),
    Case(
        'DualPath', [dict(type='DualPath', frame_grid=(2, 2), spatial_frames=2, mid_dims=4, drop_rate=0.)],
        on=('clip_frames', ),
        identity=False,
        real=[dict(type='DualPath', frame_grid=(2, 2))],
        counts=dict(clip_frames=17_903_616),
        # Behind two up-projections that start at zero: its gradient comes with the third step.
        without_gradient=('time_in.down', ),
        note='it adapts a backbone for images to clips, see below'),
    Case(
        'Side4Video', [dict(type='Side4Video', width=16, heads=2)],
        on=('clip_frames', ),
        identity=False,
        real=[dict(type='Side4Video')],
        counts=dict(clip_frames=21_056_832),
        note='it adapts a backbone for images to clips, see below'),
    Case(
        'PATT', [dict(type='PATT', ops='kv', mid_dims=4)],
        identity=False,
        real=[dict(type='PATT', ops='kv', mid_dims=128)],
        counts=dict(video_swin=4_647_424)),
    Case(
        'Prefix', [dict(type='Prefix', num_tokens=3, mid_dims=4)],
        identity=False,
        real=[dict(type='Prefix', num_tokens=16, mid_dims=128)],
        counts=dict(video_swin=4_839_936)),
    Case(
        'Prefix-qk', [dict(type='Prefix', ops='qk', num_tokens=3, mid_dims=4)],
        identity=False,
        real=[dict(type='Prefix', ops='qk', num_tokens=16, mid_dims=128, positions=196)],
        counts=dict(video_swin=29_628_864),
        often=OFTEN),
    Case(
        'VPT', [dict(type='VPT', num_tokens=3)],
        on=('vit', 'clip', 'swin', 'videomae'),
        identity=False,
        real=[dict(type='VPT', num_tokens=50)],
        counts=dict(vit=460_800, swin=12_032 * 50),
        note='Video Swin: prompts inside 3-D windows are undefined in the papers'),
    Case(
        'E2VPT', [dict(type='E2VPT', num_tokens=3, num_kv_tokens=2, segments=4)],
        on=('vit', 'clip', 'swin', 'videomae'),
        identity=False,
        real=[dict(type='E2VPT', num_tokens=10, num_kv_tokens=5)],
        counts=dict(vit=138_240, swin=180_480),
        note='Video Swin: as VPT'),
    Case(
        'APT', [dict(type='APT', num_tokens=3)],
        identity=False,
        real=[dict(type='APT', num_tokens=400)],
        counts=dict(videomae=624_000, vit=624_000)),
    Case(
        'KAdaptation', [dict(type='KAdaptation', phm_dim=4)],
        folds=True,
        real=[dict(type='KAdaptation')],
        counts=dict(clip=50_176, vit=50_176)),
    Case(
        'Compacter', [dict(type='Compacter', mid_dims=4, phm_dim=2)],
        real=[dict(type='Compacter')],
        counts=dict(clip=48_384)),
    Case('SSF', [dict(type='SSF')], identity=False, folds=True, real=[dict(type='SSF')], counts=dict(vit=205_824)),
    Case(
        'IA3', [dict(type='IA3', ops='kv'), dict(type='IA3', ops='fc2', at='input', name='ia3_ff')],
        folds=True,
        real=[dict(type='IA3', ops='kv'), dict(type='IA3', ops='fc2', at='input', name='ia3_ff')],
        counts=dict(vit=55_296, clip=55_296)),
    Case(
        'Convpass', [dict(type='Convpass', mid_dims=2, drop_rate=0.)],
        on=IMAGES,
        real=[dict(type='Convpass')],
        counts=dict(vit=327_552),
        note='videos: the paper defines a 2-D convolution over one image'),
    Case(
        'FacT-TT', [dict(type='FacT', kind='tt', rank=2, drop_rate=0.)],
        on=VITS,
        folds=True,
        real=[dict(type='FacT', kind='tt', rank=16)],
        counts=dict(vit=61_440),
        note='Swins: the shared factors need one width'),
    Case(
        'FacT-TK', [dict(type='FacT', kind='tk', rank=2, drop_rate=0.)],
        on=VITS,
        folds=True,
        real=[dict(type='FacT', kind='tk', rank=32)],
        counts=dict(vit=86_528),
        note='Swins: the shared factors need one width'),
    Case(
        'SynQT', [dict(type='SynQT', num_tokens=2, mid_dims=4, qsm_mid_dims=2, drop_rate=0., row_drop_rate=0.)],
        on=VITS,
        identity=False,
        real=[dict(type='SynQT', num_tokens=16, drop_dead=False)],
        counts=dict(vit=2_761_106),
        note='Swins: queries across windows are undefined in the paper'),
    Case(
        'LST', [dict(type='LST', reduction=4)],
        on=('vit', 'clip', 'videomae'),
        identity=False,
        real=[dict(type='LST', reduction=8)],
        counts=dict(vit=2_376_492),
        note='Swins: one ladder width is undefined over changing widths'),
    Case(
        'VQT', [dict(type='VQT', num_tokens=2, drop_rate=0.)],
        on=VITS,
        identity=False,
        real=[dict(type='VQT', num_tokens=1)],
        counts=dict(vit=9_216, videomae=9_216),
        note='Swins: queries across windows are undefined in the paper'),
    Case(
        'RepAdapter', [dict(type='RepAdapter', mid_dims=4, drop_rate=0.)],
        folds=True,
        real=[dict(type='RepAdapter')],
        counts=dict(vit=239_808),
        often=OFTEN),
    Case(
        'LoHa', [dict(type='LoHa', rank=2, ops='q,k,v,proj,fc1,fc2', alpha=1)],
        folds=True,
        real=[dict(type='LoHa')],
        counts=dict(vit=294_912, videomae=294_912),
        often=OFTEN),
    Case(
        'LoKr', [dict(type='LoKr', rank=2, ops='q,k,v,proj,fc1,fc2', alpha=4)],
        folds=True,
        real=[dict(type='LoKr')],
        counts=dict(vit=26_112),
        often=OFTEN),
    Case(
        'OFT', [dict(type='OFT', block_size=8, ops='q,k,v,proj,fc1,fc2')],
        folds=True,
        real=[dict(type='OFT')],
        counts=dict(vit=285_696),
        often=OFTEN),
    Case(
        'BOFT', [dict(type='BOFT', block_size=4, factors=3, ops='q,v,fc2')],
        folds=True,
        real=[dict(type='BOFT')],
        counts=dict(vit=147_456),
        often=OFTEN),
    Case(
        'DiffFit', [dict(type='DiffFit')],
        folds=True,
        real=[dict(type='DiffFit')],
        counts=dict(vit=24, swin=48),
        often=OFTEN),
    Case(
        'Mona', [dict(type='Mona', mid_dims=4, drop_rate=0.)],
        on=IMAGES,
        identity=False,
        real=[dict(type='Mona')],
        counts=dict(vit=2_684_928, swin=3_667_456),
        note='videos: the paper defines 2-D convolutions over one image',
        often=('vit', 'swin')),
    Case(
        'ARC', [dict(type='ARC', mid_dims=4)],
        identity=False,
        folds=True,
        real=[dict(type='ARC')],
        counts=dict(vit=96_432),
        often=OFTEN),
    Case(
        'RLRR', [dict(type='RLRR')],
        identity=False,
        folds=True,
        real=[dict(type='RLRR')],
        counts=dict(vit=288_768),
        often=OFTEN),
    Case(
        'AdaLoRA', [dict(type='AdaLoRA', rank=3, alpha=6)],
        folds=True,
        real=[dict(type='AdaLoRA')],
        counts=dict(vit=1_991_520),
        often=OFTEN),
    Case(
        'GPS', [dict(type='GPS', num_weights=2)],
        folds=True,
        real=[dict(type='GPS')],
        counts=dict(vit=82_944),
        often=OFTEN),
    Case(
        'SPT', [dict(type='SPT', budget=1200, rank=2)],
        folds=True,
        real=[dict(type='SPT')],
        counts=dict(vit=400_000),
        often=OFTEN),
    Case(
        'SCT', [dict(type='SCT', num_channels=4)],
        identity=False,
        real=[dict(type='SCT')],
        counts=dict(vit=111_744),
        often=OFTEN),
    Case(
        'GLoRA', [dict(type='GLoRA', rank=2)],
        folds=True,
        real=[dict(type='GLoRA')],
        counts=dict(vit=1_825_056),
        without_gradient=('k.c_down', ),  # one constant for all logits of a query
        often=OFTEN),
    Case(
        'Res-Tuning', [dict(type='ResTuning', num_tokens=2, mid_dims=4)],
        identity=False,
        real=[dict(type='ResTuning')],
        counts=dict(vit=285_816, swin=373_232),
        often=OFTEN),
    Case(
        'Res-Tuning-Bypass', [dict(type='ResTuningBypass', mid_dims=4)],
        on=VITS,
        identity=False,
        real=[dict(type='ResTuningBypass')],
        counts=dict(vit=387_324),
        note='Swins: the chain has one width',
        often=('vit', 'videomae')),
    Case('LoRA + AdaptFormer',
         [dict(type='LoRA', rank=2), dict(type='AdaptFormer', mid_dims=4)]),
    Case(
        'PATT + AdaptFormer',
        [dict(type='PATT', mid_dims=4, init='zero_up'),
         dict(type='AdaptFormer', mid_dims=4, input='normed')],
        real=[dict(type='PATT', mid_dims=128), dict(type='AdaptFormer', mid_dims=64)],
        counts=dict(video_swin=6_201_088)),
    Case('DoRA + LoRA', [dict(type='DoRA', rank=2), dict(type='LoRA', rank=2, ops='qkv')], folds=True,
         from_base=('magnitude', )),
    Case('LoRA + SSF', [dict(type='LoRA', rank=2), dict(type='SSF', std=0.)], folds=True),
    Case(
        'VPT + LoRA',
        [dict(type='VPT', num_tokens=2), dict(type='LoRA', rank=2, ops='qkv')],
        on=('vit', 'clip', 'swin', 'videomae'),
        identity=False),
]
CASE = {c.name: c for c in METHODS}
PAIRS: List[Tuple[Case, Backbone]] = [(c, BACKBONE[name]) for c in METHODS for name in c.on if name in BACKBONE]
REFUSED: List[Tuple[Case, Backbone]] = [(case, b) for case in METHODS for b in BACKBONES if b.name not in case.on]
REFUSED += [(case, other) for other in FOREIGN for case in METHODS
            if not {other.like, other.name} & set(case.on) or case.name in other.without]
PAIRS += [(case, other) for other in FOREIGN for case in METHODS if other.carries(case)]
PAIR_IDS = [f'{case.name}-{b.name}' for case, b in PAIRS]


@contextmanager
def real_size() -> Iterator[None]:
    """Build real-size models without memory: on the meta device, except for the drop-path rates, whose values upstream
    reads."""
    linspace = torch.linspace
    torch.linspace = lambda *args, **kwargs: linspace(*args, **{**kwargs, 'device': 'cpu'})
    try:
        with torch.device('meta'):
            yield
    finally:
        torch.linspace = linspace


def features(output: Any) -> torch.Tensor:
    """The last feature of a backbone's output, whatever its form."""
    while isinstance(output, (tuple, list)):
        output = output[-1]
    if hasattr(output, 'last_hidden_state'):  # of transformers
        pooled = output.get('pooler_output')
        return output.last_hidden_state[:, 0] if pooled is None else pooled
    return output


def drawn(module: torch.nn.Module, std: float = 0.5, seed: int = 0) -> torch.nn.Module:
    """The module, all of its parameters drawn anew from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module


def perturb(module: torch.nn.Module, std: float = 0.05, seed: int = 1) -> None:
    """Move all parameters away from their start, so that zero-initialised branches act."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * std)
