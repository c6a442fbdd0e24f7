# SPDX-License-Identifier: Apache-2.0
"""RandAugment of whole clips, with the same operations and magnitudes on all frames.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space",
https://arxiv.org/abs/1909.13719, with the "increasing" set of 15 operations that VideoMAE and APT use. mmpretrain's
RandAugment works on one image and in BGR order, torchvision's has other operations and magnitudes.
"""

import random
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image, ImageEnhance, ImageOps

from ..registry import TRANSFORMS
from ..sites import nearest, positive

RESAMPLING = {
    'nearest': Image.Resampling.NEAREST,
    'bilinear': Image.Resampling.BILINEAR,
    'bicubic': Image.Resampling.BICUBIC
}
MAX_LEVEL = 10.

#: An operation that was drawn: its name and argument (None where it takes none).
Draw = Tuple[str, Any]


def _signed(value: float) -> float:
    return -value if random.random() > 0.5 else value


def _enhance(level: float) -> float:
    return 1. + _signed(level / MAX_LEVEL * 0.9)


#: Operation -> its argument at a level in 0..10, in the published order. Operations with a direction draw their sign.
LEVELS: Dict[str, Optional[Callable[[float], float]]] = {
    'AutoContrast': None,
    'Equalize': None,
    'Invert': None,
    'Rotate': lambda level: _signed(level / MAX_LEVEL * 30.),
    'PosterizeIncreasing': lambda level: 4 - int(level / MAX_LEVEL * 4),
    'SolarizeIncreasing': lambda level: 256 - int(level / MAX_LEVEL * 256),
    'SolarizeAdd': lambda level: int(level / MAX_LEVEL * 110),
    'ColorIncreasing': _enhance,
    'ContrastIncreasing': _enhance,
    'BrightnessIncreasing': _enhance,
    'SharpnessIncreasing': _enhance,
    'ShearX': lambda level: _signed(level / MAX_LEVEL * 0.3),
    'ShearY': lambda level: _signed(level / MAX_LEVEL * 0.3),
    'TranslateXRel': lambda level: _signed(level / MAX_LEVEL * 0.45),
    'TranslateYRel': lambda level: _signed(level / MAX_LEVEL * 0.45),
}
ENHANCERS = {
    'ColorIncreasing': ImageEnhance.Color,
    'ContrastIncreasing': ImageEnhance.Contrast,
    'BrightnessIncreasing': ImageEnhance.Brightness,
    'SharpnessIncreasing': ImageEnhance.Sharpness,
}
POINTWISE: Dict[str, Callable[..., Image.Image]] = {
    'AutoContrast': lambda image, _: ImageOps.autocontrast(image),
    'Equalize': lambda image, _: ImageOps.equalize(image),
    'Invert': lambda image, _: ImageOps.invert(image),
    'PosterizeIncreasing': lambda image, bits: ImageOps.posterize(image, bits),
    'SolarizeIncreasing': lambda image, threshold: ImageOps.solarize(image, threshold),
    'SolarizeAdd': lambda image, add: image.point([min(255, v + add) if v < 128 else v for v in range(256)] * 3),
}
#: Coefficients of PIL's affine transform, from the argument and the image's width and height.
AFFINE: Dict[str, Callable[[float, int, int], Sequence[float]]] = {
    'ShearX': lambda v, width, height: (1, v, 0, 0, 1, 0),
    'ShearY': lambda v, width, height: (1, 0, 0, v, 1, 0),
    'TranslateXRel': lambda v, width, height: (1, 0, v * width, 0, 1, 0),
    'TranslateYRel': lambda v, width, height: (1, 0, 0, 0, 1, v * height),
}


@TRANSFORMS.register_module()
class ClipRandAugment(BaseTransform):
    """RandAugment with one draw per clip.

    ``rand-m4-n2-mstd0.2-inc1`` of the published scripts is ``num_ops=2, magnitude=4, magnitude_std=0.2``. The
    operations are drawn with replacement from ``numpy.random``, then for each one from ``random``: whether it is
    applied, its level, its sign. These are the draws of the published code for the same seeds.

    Args:
        num_ops: Operations per clip.
        magnitude: Mean level, 0..10.
        magnitude_std: Standard deviation of the level.
        prob: Probability that a drawn operation is applied.
        fill: Grey value of pixels that come from outside the frame.
        interpolation: 'nearest', 'bilinear' or 'bicubic', for rotation, shear and translation.

    Raises:
        ValueError: If an option is out of range or unknown.
    """

    def __init__(self,
                 num_ops: int = 2,
                 magnitude: float = 4.,
                 magnitude_std: float = 0.2,
                 prob: float = 0.5,
                 fill: int = 128,
                 interpolation: str = 'bicubic') -> None:
        owner = type(self).__name__
        if not 0 <= magnitude <= MAX_LEVEL:
            raise ValueError(f'{owner}: magnitude must be in 0..{MAX_LEVEL:g}, got {magnitude!r}')
        if interpolation not in RESAMPLING:
            raise ValueError(f'{owner}: unknown interpolation {interpolation!r}' + nearest(interpolation, RESAMPLING))
        self.num_ops = positive(num_ops, 'num_ops', owner)
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.prob = prob
        self.fill = (fill, ) * 3
        self.interpolation = interpolation

    def draw(self) -> List[Draw]:
        """The operations to apply to one clip."""
        names = list(LEVELS)
        draws: List[Draw] = []
        for index in np.random.choice(len(names), self.num_ops):
            if self.prob < 1. and random.random() > self.prob:  # at 1 nothing is drawn, as published
                continue
            level = random.gauss(self.magnitude, self.magnitude_std) if self.magnitude_std > 0 else self.magnitude
            argument = LEVELS[names[index]]
            draws.append((names[index], argument(min(MAX_LEVEL, max(0., level))) if argument else None))
        return draws

    def apply(self, image: Image.Image, name: str, argument: Any) -> Image.Image:
        """One operation on one RGB image."""
        if name in POINTWISE:
            return POINTWISE[name](image, argument)
        if name in ENHANCERS:
            return ENHANCERS[name](image).enhance(argument)
        options: Dict[str, Any] = dict(resample=RESAMPLING[self.interpolation], fillcolor=self.fill)
        if name == 'Rotate':
            return image.rotate(argument, **options)
        return image.transform(image.size, Image.Transform.AFFINE, AFFINE[name](argument, *image.size), **options)

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        """``imgs``: a list of (H, W, 3) RGB arrays, uint8 -> the same shapes."""
        draws = self.draw()
        if draws:
            results['imgs'] = [self._frame(frame, draws) for frame in results['imgs']]
        return results

    def _frame(self, frame: np.ndarray, draws: Sequence[Draw]) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(frame))
        for name, argument in draws:
            image = self.apply(image, name, argument)
        return np.array(image)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_ops={self.num_ops}, magnitude={self.magnitude}, '
            f'magnitude_std={self.magnitude_std}, '
            f'prob={self.prob}, interpolation={self.interpolation!r})')
