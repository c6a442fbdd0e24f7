# SPDX-License-Identifier: Apache-2.0
"""Where the official bases of the recipes come from: one row per weight file, and nothing else in the project holds
their addresses.

``mmpetl fetch NAME`` reads this table. A size is given where it is published, else the server tells it; a digest may be
the beginning of one, where no more is published.
"""

from dataclasses import dataclass
from typing import Dict, Tuple

from ..names import command_here

#: Where Google Drive serves a file without its page for viewers.
_DRIVE = 'https://drive.usercontent.google.com/download?export=download&confirm=t&id='
_FB, _MS, _GOOGLE = ('https://dl.fbaipublicfiles.com/', 'https://github.com/SwinTransformer/storage/releases/download/',
                     'https://storage.googleapis.com/vit_models/')
_MM, _MM_PAGE = 'https://download.openmmlab.com/', 'https://github.com/open-mmlab/mmpretrain'
_MMA_PAGE = 'https://github.com/open-mmlab/mmaction2'
_UNIFORMER = 'uniformerv2-base-p16-res224_clip_8xb32-u8_kinetics400-rgb'
_OPENAI = 'https://openaipublic.azureedge.net/clip/models/'
_CLIP32 = '40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af'
_CLIP16 = '5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f'
_VIDEOMAE = 'https://github.com/MCG-NJU/VideoMAE/blob/main/MODEL_ZOO.md'


@dataclass(frozen=True)
class Base:
    """One official weight file.

    Attributes:
        name: What ``mmpetl fetch`` calls it.
        file: Name that the recipes read, in the cache folder.
        url: Official address.
        page: Official page that offers it.
        title: What it is, one phrase.
        licence: Licence that its authors give it.
        size: Bytes, where published; else 0.
        sha256: SHA-256 or its published beginning, in hexadecimal; empty where none is published.
        md5: MD5 or its published beginning.
    """
    name: str
    file: str
    url: str
    page: str
    title: str
    licence: str
    size: int = 0
    sha256: str = ''
    md5: str = ''

    @property
    def digest(self) -> Tuple[str, str]:
        """(algorithm, beginning of the digest in hexadecimal); ('', '') where none is published."""
        return ('sha256', self.sha256) if self.sha256 else ('md5', self.md5) if self.md5 else ('', '')


def _videomae(size: str, data: str, epochs: int, drive: str) -> Base:
    title = dict(k400='Kinetics-400', ssv2='Something-Something V2')[data]
    return Base(f'videomae-{size}-{data}', f'videomae_vit-{size}_{data}_{epochs}e.pth', _DRIVE + drive, _VIDEOMAE,
                f'VideoMAE ViT-{size[0].upper()}/16, self-supervised on {title} for {epochs} epochs', 'CC BY-NC 4.0')


_ALL = (
    Base('vit-base-in21k', 'ViT-B_16.npz', _GOOGLE + 'imagenet21k/ViT-B_16.npz',
         'https://github.com/google-research/vision_transformer', 'ViT-B/16, supervised on ImageNet-21k', 'Apache-2.0',
         md5='d9715d'),
    Base('vit-base-augreg', 'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz',
         _GOOGLE + 'augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz',
         'https://github.com/google-research/vision_transformer', 'ViT-B/16 of AugReg, supervised on ImageNet-21k',
         'Apache-2.0'),
    Base('vit-base-in1k', 'jx_vit_base_p16_224-80ecf9dd.pth',
         'https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/jx_vit_base_p16_224-80ecf9dd'
         '.pth', 'https://github.com/huggingface/pytorch-image-models',
         'ViT-B/16, supervised on ImageNet-21k and fine-tuned on ImageNet-1k', 'Apache-2.0', sha256='80ecf9dd'),
    Base('vit-base-mae', 'mae_pretrain_vit_base.pth', _FB + 'mae/pretrain/mae_pretrain_vit_base.pth',
         'https://github.com/facebookresearch/mae', 'ViT-B/16, MAE on ImageNet-1k', 'CC BY-NC 4.0', md5='8cad7c'),
    Base('vit-base-mocov3', 'linear-vit-b-300ep.pth.tar', _FB + 'moco-v3/vit-b-300ep/linear-vit-b-300ep.pth.tar',
         'https://github.com/facebookresearch/moco-v3', 'ViT-B/16, MoCo v3 on ImageNet-1k', 'CC BY-NC 4.0',
         md5='8f39ce'),
    Base('deit-base', 'deit_base_patch16_224-b5f2ef4d.pth', _FB + 'deit/deit_base_patch16_224-b5f2ef4d.pth',
         'https://github.com/facebookresearch/deit', 'DeiT-B/16, supervised on ImageNet-1k', 'Apache-2.0',
         sha256='b5f2ef4d'),
    Base('swin-base-in22k', 'swin_base_patch4_window7_224_22k.pth',
         _MS + 'v1.0.0/swin_base_patch4_window7_224_22k.pth', 'https://github.com/microsoft/Swin-Transformer',
         'Swin-B, supervised on ImageNet-22k', 'MIT', md5='bf9cc1'),
    Base('swin-v2-base', 'swinv2-base-w8_3rdparty_in1k-256px_20220803-8ff28f2b.pth',
         _MM + 'mmclassification/v0/swin-v2/swinv2-base-w8_3rdparty_in1k-256px_20220803-8ff28f2b.pth', _MM_PAGE,
         "Swin V2-B, supervised on ImageNet-1k, in mmpretrain's names", 'MIT', sha256='8ff28f2b'),
    Base('beitv2-base', 'beitv2-base_3rdparty_in1k_20221114-73e11905.pth',
         _MM + 'mmclassification/v0/beit/beitv2-base_3rdparty_in1k_20221114-73e11905.pth', _MM_PAGE,
         "BEiT v2 ViT-B/16, self-supervised, fine-tuned on ImageNet-21k and -1k, in mmpretrain's names", 'MIT',
         sha256='73e11905'),
    Base('eva02-small-in21k', 'eva02-small-p14_pre_in21k_20230505-3175f463.pth',
         _MM + 'mmpretrain/v1.0/eva02/eva02-small-p14_pre_in21k_20230505-3175f463.pth', _MM_PAGE,
         "EVA-02 ViT-S/14, self-supervised on ImageNet-21k, in mmpretrain's names", 'MIT', sha256='3175f463'),
    Base('deit3-small', 'deit3-small-p16_3rdparty_in1k_20221008-0f7c70cf.pth',
         _MM + 'mmclassification/v0/deit3/deit3-small-p16_3rdparty_in1k_20221008-0f7c70cf.pth', _MM_PAGE,
         "DeiT III ViT-S/16, supervised on ImageNet-1k, in mmpretrain's names", 'Apache-2.0', sha256='0f7c70cf'),
    Base('mvitv2-tiny', 'mvitv2-tiny_3rdparty_in1k_20220722-db7beeef.pth',
         _MM + 'mmclassification/v0/mvit/mvitv2-tiny_3rdparty_in1k_20220722-db7beeef.pth', _MM_PAGE,
         "MViT v2-T, supervised on ImageNet-1k, in mmpretrain's names", 'Apache-2.0', sha256='db7beeef'),
    Base('video-mvitv2-small-k400', 'mvit-small-p244_16x4x1_kinetics400-rgb_20221021-9ebaaeed.pth',
         _MM + 'mmaction/v1.0/recognition/mvit/converted/mvit-small-p244_16x4x1_kinetics400-rgb_20221021-9ebaaeed.pth',
         _MMA_PAGE, "MViT v2-S for videos, supervised on Kinetics-400, in mmaction2's names", 'Apache-2.0',
         sha256='9ebaaeed'),
    Base('uniformerv2-base-k400', _UNIFORMER + '_20230313-e29fc968.pth',
         f'{_MM}mmaction/v1.0/recognition/uniformerv2/{_UNIFORMER}/{_UNIFORMER}_20230313-e29fc968.pth', _MMA_PAGE,
         "UniFormer V2-B/16 out of CLIP's image tower, trained on Kinetics-400 by mmaction2", 'Apache-2.0',
         sha256='e29fc968'),
    Base('clip-vit-base-p32', 'ViT-B-32.pt', f'{_OPENAI}{_CLIP32}/ViT-B-32.pt', 'https://github.com/openai/CLIP',
         'CLIP ViT-B/32, image and text towers', 'MIT', sha256=_CLIP32),
    Base('clip-vit-base-p16', 'ViT-B-16.pt', f'{_OPENAI}{_CLIP16}/ViT-B-16.pt', 'https://github.com/openai/CLIP',
         'CLIP ViT-B/16, image and text towers', 'MIT', sha256=_CLIP16),
    Base('video-swin-base', 'swin_base_patch244_window877_kinetics400_22k.pth',
         _MS + 'v1.0.4/swin_base_patch244_window877_kinetics400_22k.pth',
         'https://github.com/SwinTransformer/Video-Swin-Transformer',
         'Video Swin-B, supervised on ImageNet-22k and Kinetics-400', 'Apache-2.0'),
    Base('video-swin-base-k600', 'swin_base_patch244_window877_kinetics600_22k.pth',
         _MS + 'v1.0.4/swin_base_patch244_window877_kinetics600_22k.pth',
         'https://github.com/SwinTransformer/Video-Swin-Transformer',
         'Video Swin-B, supervised on ImageNet-22k and Kinetics-600', 'Apache-2.0'),
    _videomae('small', 'k400', 1600, '1nU-H1u3eJ-VuyCveU7v-WIOcAVxs5Hww'),
    _videomae('base', 'k400', 1600, '1tEhLyskjb755TJ65ptsrafUG2llSwQE1'),
    _videomae('large', 'k400', 1600, '1qLOXWb_MGEvaI7tvuAe94CV7S2HXRwT3'),
    _videomae('huge', 'k400', 1600, '1AJQR1Rsi2N1pDn9tLyJ8DQrUREiBA1bO'),
    _videomae('small', 'ssv2', 2400, '1p_I1aaONOeUvRmRQw1UT3-L2H8XJClHu'),
    _videomae('base', 'ssv2', 2400, '1I18dY_7rSalGL8fPWV82c0-foRUDzJJk'),
)



def _hub(name: str, title: str, licence: str) -> Base:
    page = f'https://huggingface.co/{name}'
    return Base(name, 'model.safetensors', f'{page}/tree/main', page, title, licence)


#: Bases that timm and transformers fetch by themselves, by the ``model_name`` of the recipes (timm's without 'timm/').
HUB: Dict[str, Base] = {base.name.removeprefix('timm/'): base for base in (
    _hub('timm/vit_small_patch14_dinov2.lvd142m', 'DINOv2 ViT-S/14, self-supervised on LVD-142M', 'Apache-2.0'),
    _hub('timm/vit_base_patch16_siglip_224.v2_webli', 'SigLIP 2 ViT-B/16, with texts on WebLI', 'Apache-2.0'),
    _hub('timm/vit_small_patch16_dinov3.lvd1689m', 'DINOv3 ViT-S/16, distilled on LVD-1689M', 'DINOv3 License'),
    _hub('timm/swin_base_patch4_window7_224.ms_in22k', 'Swin-B, supervised on ImageNet-22k', 'MIT'),
    _hub('timm/hiera_tiny_224.mae', 'Hiera-T, MAE on ImageNet-1k', 'CC BY-NC 4.0'),
    _hub('facebook/dinov2-small', 'DINOv2 ViT-S/14, self-supervised on LVD-142M', 'Apache-2.0'),
    _hub('google/siglip2-base-patch16-224', 'SigLIP 2 ViT-B/16, with texts on WebLI', 'Apache-2.0'),
    _hub('facebook/dinov3-vits16-pretrain-lvd1689m', 'DINOv3 ViT-S/16, distilled on LVD-1689M; asks for consent first',
         'DINOv3 License'),
    _hub('microsoft/swinv2-tiny-patch4-window8-256', 'Swin V2-T, supervised on ImageNet-1k at 256 px', 'Apache-2.0'),
    _hub('MCG-NJU/videomae-base', 'VideoMAE ViT-B/16, self-supervised on Kinetics-400', 'CC BY-NC 4.0'),
    _hub('facebook/vjepa2-vitl-fpc64-256', 'V-JEPA 2 ViT-L/16, self-supervised on VideoMix22M', 'see its page'),
    _hub('facebook/timesformer-base-finetuned-k400', 'TimeSformer-B, supervised on ImageNet-21k and Kinetics-400',
         'CC BY-NC 4.0'),
)}
# By the name that 'mmpetl fetch' takes, and by the file that configs name.
BASES: Dict[str, Base] = {base.name: base for base in _ALL}
FILES: Dict[str, Base] = {base.file: base for base in _ALL}


#: Files that the project makes out of packages -> the command.
_MADE = {
    'dinov2_vits14.safetensors': 'mmpetl fetch dinov2-vits14',
    'videomae_dinov2s.safetensors': 'python tools/prepare_motion_clips.py',
    'videomae_dinov2s_untimed.safetensors': 'python tools/prepare_motion_clips.py',
}


def command_for(path: str) -> str:
    """``mmpetl fetch NAME`` for a file that the recipes read; empty for any other."""
    # Configs name files by paths of the user's machine; the file's own name tells which it is.
    name = path.replace('\\', '/').rsplit('/', 1)[-1]
    return command_here(f'mmpetl fetch {FILES[name].name}' if name in FILES else _MADE.get(name, ''))


def how_to_get(path: str) -> str:
    """``: 'mmpetl fetch NAME' gets it`` for a file that the recipes read; empty for any other."""
    command = command_for(path)
    return f": '{command}' gets it" if command else ''
