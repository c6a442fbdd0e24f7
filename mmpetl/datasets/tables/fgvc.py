# SPDX-License-Identifier: Apache-2.0
"""FGVC: five fine-grained data sets with the json splits that VPT released ({relative image path: class id}).

Source: Jia et al., arXiv 2203.12119, Table 8 (counts). ``val`` is a random tenth of ``train`` where no public
    validation list exists.
"""

from .spec import IMAGENET_NORM, Split, Suite, Task


def _task(name: str, classes: int, train: int, val: int, test: int, images: str, *aliases: str) -> Task:
    counts = {'train': train, 'val': val, 'test': test}
    return Task(suite='fgvc', name=name, num_classes=classes, images=images, resize='crop', aliases=aliases,
                splits={s: Split((f'{s}.json',), n) for s, n in counts.items()})


FGVC = Suite(
    name='fgvc',
    form='fgvc',
    title='FGVC',
    dataset='mmpetl.FGVC',
    norm=IMAGENET_NORM,
    root='data/fgvc',
    tasks={
        t.name: t
        for t in (_task('CUB', 200, 5394, 600, 5794, 'images', 'CUB_200_2011'),
                  _task('nabirds', 555, 21536, 2393, 24633, 'images', 'NABirds'),
                  _task('OxfordFlowers', 102, 1020, 1020, 6149, '', 'OxfordFlower', 'oxford_flowers'),
                  _task('StanfordDogs', 120, 10800, 1200, 8580, 'Images', 'Stanford-dogs', 'stanford_dogs'),
                  _task('StanfordCars', 196, 7329, 815, 8041, '', 'Stanford-cars', 'stanford_cars'))
    },
    phases={
        'search': ('train', 'val'),
        'final': ('train', 'test')
    },
    hint=
    "put VPT's train.json, val.json and test.json of each data set beside its images: <root>/CUB/train.json, "
    "<root>/CUB/images/"
)
