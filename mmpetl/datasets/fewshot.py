# SPDX-License-Identifier: Apache-2.0
"""Few-shot subsets and validation splits of the ELEVATER protocol, exact to the image.

Source: the sampling of the vision-datasets package that the ELEVATER toolkit pins (0.2.17), restated; Li et al., arXiv
    2204.08790.
"""

import random
from typing import List, Sequence

Labels = Sequence[Sequence[int]]


def few_shot_positions(labels: Labels, num_classes: int, shots: int, seed: int) -> List[int]:
    """Positions of the few-shot subset, in the order in which the published sampler walks the images.

    The images are shuffled by Python's generator and walked once. An image is skipped when each of its classes already
    has ``shots`` images, and taken when its rarest class has at most half of them or its commonest at most one and a
    half times as many. At most ``shots`` images without any class are taken. With one label per image this gives
    exactly min(shots, n_c) images of class c.

    Args:
        labels: Class ids of every image.
        num_classes: Number of classes C.
        shots: Images per class, or -1 for all images in their order.
        seed: Seed of the shuffle (published: 0, 1, 2).

    Raises:
        ValueError: If ``shots`` is neither -1 nor a positive number.
    """
    if shots == -1:
        return list(range(len(labels)))
    if shots < 1:
        raise ValueError(f'shots={shots}: give a number of images per class, or -1 for all')
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    counts = [0] * num_classes
    unlabelled = 0
    chosen = []
    for position in order:
        classes = labels[position]
        if not classes:
            if unlabelled < shots:
                unlabelled += 1
                chosen.append(position)
            continue
        have = [counts[c] for c in classes]
        if min(have) >= shots:
            continue
        if min(have) <= shots / 2 or max(have) <= 1.5 * shots:
            chosen.append(position)
            for c in classes:
                counts[c] += 1
        if min(counts) >= shots:
            break
    return chosen


def validation_positions(labels: Labels, num_classes: int) -> List[int]:
    """Positions (ascending) of the fifth of the images that validates while searching.

    Class by class in ascending order, the first images that still carry a needed class go to validation until each
    class has a fifth of its images there, rounded up. An image counts for all its classes.

    Args:
        labels: Class ids of every image of the (few-shot) training set.
        num_classes: Number of classes C.
    """
    needed = [0] * num_classes
    where: List[List[int]] = [[] for _ in range(num_classes)]
    for position, classes in enumerate(labels):
        for c in classes:
            needed[c] += 1
            where[c].append(position)
    needed = [-(-n // 5) for n in needed]
    taken = set()
    for c in range(num_classes):
        waiting = iter(where[c])
        while needed[c] > 0:
            position = next(waiting)
            if position not in taken:
                taken.add(position)
                for other in labels[position]:
                    needed[other] -= 1
    return sorted(taken)
