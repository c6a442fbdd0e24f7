# SPDX-License-Identifier: Apache-2.0
"""What a training run left and what its model says about the test data: curves, scores, confusions, worst samples."""

import glob
import heapq
import io
import math
import os
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from ..datasets.contact_sheet import as_picture
from ..training.build import build_model, load_trained, read_config
from ..training.work_dir import ADAPTERS, newest_checkpoint
from .trial import log_rows, logs_of

#: Largest side of a thumbnail, pixels.
THUMB = 112
Curve = List[Tuple[int, float]]
_ODD = ('data_time', 'time', 'memory', 'epoch', 'iter', 'step')


def is_run(folder: str) -> bool:
    """Whether a folder is the work dir of a training run."""
    return bool(logs_of(folder))


def config_of(folder: str) -> str:
    """The config of a run as it was trained: the newest that MMEngine wrote.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = sorted(glob.glob(os.path.join(glob.escape(folder), '*', 'vis_data', 'config.py')))
    if not found:
        raise FileNotFoundError(f'{folder} holds no run: no */vis_data/config.py, which training writes: name the work '
                                'dir of a run')
    return found[-1]


def read_curves(folder: str) -> Tuple[Dict[str, Curve], Dict[str, Curve]]:
    """The curves of a run, out of the logs that MMEngine wrote; later pieces of a resumed run win.

    Returns:
        Numbers of the training by name over iterations, and of the validation over epochs.
    """
    training: Dict[str, Dict[int, float]] = {}
    testing: Dict[str, Dict[int, float]] = {}
    for row in log_rows(folder):
        into = training if 'iter' in row else testing
        for key, value in row.items():
            if key not in _ODD and isinstance(value, (int, float)) and math.isfinite(value):
                into.setdefault(key, {})[int(row['step'])] = float(value)
    return ({key: sorted(found.items()) for key, found in training.items()},
            {key: sorted(found.items()) for key, found in testing.items()})


def logs_epochs(folder: str) -> bool:
    """Whether the log of a run counts epochs; one by iterations does not."""
    return any('epoch' in row for row in log_rows(folder))


@dataclass
class Bad:
    """A test sample with its loss, the encoded thumbnail (JPEG), its name, and the label it got; and one view of what
    the model saw, (C, H, W) or (1, C, T, H, W)."""
    loss: float
    thumb: bytes
    name: str
    label: int
    guess: int
    probability: float
    inputs: torch.Tensor


@dataclass
class Outcome:
    """What a model says about the test data.

    Attributes:
        labels: True classes, (N,).
        scores: Probabilities, (N, C).
        classes: Names of the classes.
        worst: The samples of the highest loss, worst first.
        model: The model.
        swap: Whether the channels of inputs are BGR.
    """
    labels: np.ndarray
    scores: np.ndarray
    classes: Sequence[str]
    worst: List[Bad] = field(default_factory=list)
    model: Any = None
    swap: bool = False

    @property
    def guesses(self) -> np.ndarray:
        """Predicted classes, (N,)."""
        found: np.ndarray = self.scores.argmax(1)
        return found

    def confusion(self) -> np.ndarray:
        """Number of samples by true (rows) and predicted class, (C, C)."""
        from sklearn.metrics import confusion_matrix
        found: np.ndarray = confusion_matrix(self.labels, self.guesses, labels=range(self.scores.shape[1]))
        return found


def trained_file(folder: str) -> str:
    """The adapter of a run, or its newest checkpoint.

    Raises:
        FileNotFoundError: If there is neither.
    """
    for name in ADAPTERS:
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    newest = newest_checkpoint(folder)
    if newest.path is None:
        raise FileNotFoundError(f'{folder} holds no adapter and no checkpoint to test: train on with --resume, or '
                                'leave the test out by --no-test')
    return newest.path


@torch.no_grad()
def outcome_of(folder: str, worst: int = 12, tick: Optional[Callable[[int, int], None]] = None) -> Outcome:
    """Test the adapter of a run on its test data.

    Args:
        folder: The work dir.
        worst: Samples to keep.
        tick: Called with (batches done, batches in all).

    Raises:
        FileNotFoundError: If config or adapter are missing.
        ValueError: If the config has no test data, or samples have several labels.
    """
    from mmengine.device import get_device
    from mmengine.runner import Runner
    cfg = read_config(config_of(folder))
    if not cfg.get('test_dataloader'):
        raise ValueError(f'{folder}: the config has no test_dataloader')
    model = build_model(cfg)
    header = load_trained(model, trained_file(folder), cfg)
    model.to(get_device()).eval()
    loader = Runner.build_dataloader(cfg.test_dataloader, seed=0)
    labels: List[int] = []
    scores: List[np.ndarray] = []
    heap: List[Tuple[float, int, Bad]] = []
    swap = cfg.get('default_scope') != 'mmaction'  # pictures are BGR, frames RGB
    for done, batch in enumerate(loader, 1):
        for sample, inputs in zip(model.test_step(batch), batch['inputs']):
            truth = sample.gt_label.reshape(-1).tolist()
            if len(truth) != 1:
                raise ValueError(f'{folder}: samples have several labels, which have no confusion matrix')
            probability = sample.pred_score.float().cpu().numpy()
            loss = -math.log(max(float(probability[truth[0]]), 1e-12))  # it may be 0
            labels.append(truth[0])
            scores.append(probability)
            if len(heap) < worst or loss > heap[0][0]:
                bad = Bad(loss, thumbnail(inputs, swap), _name(sample), truth[0], int(probability.argmax()),
                          float(probability[truth[0]]), inputs[:1].clone() if inputs.dim() == 5 else inputs.clone())
                # the number decides between equal losses: samples cannot be compared
                (heapq.heappush if len(heap) < worst else heapq.heapreplace)(heap, (loss, -len(labels), bad))
        if tick:
            tick(done, len(loader))
    if not labels:
        raise ValueError(f'{folder}: the test data are empty')
    array = np.stack(scores)
    return Outcome(np.asarray(labels), array, _classes(header, loader.dataset, array.shape[1]),
                  [bad for *_, bad in sorted(heap, key=lambda item: item[:2], reverse=True)], model, swap)


def _name(sample: Any) -> str:
    """The last two parts of the file's path."""
    path = str(sample.get('img_path') or sample.get('filename') or sample.get('frame_dir') or '')
    return '/'.join(path.replace('\\', '/').split('/')[-2:])


def _classes(header: Any, dataset: Any, count: int) -> List[str]:
    """Names of the classes, from the adapter or the data set; else their numbers."""
    for names in ((header or {}).get('classes'), (getattr(dataset, 'metainfo', None) or {}).get('classes')):
        if names and len(names) == count:
            return [str(name) for name in names]
    return [str(i) for i in range(count)]


def as_image(inputs: torch.Tensor, swap: bool) -> Any:
    """What the model saw as a Pillow picture: a picture (3, H, W), or the middle frame of a clip.

    Args:
        inputs: (C, H, W), (C, T, H, W) or (clips, C, T, H, W), uint8 or any other numbers.
        swap: Whether the channels are BGR.
    """
    from PIL import Image
    while inputs.dim() > 4:
        inputs = inputs[0]
    if inputs.dim() == 4:
        inputs = inputs[:, inputs.shape[1] // 2] if inputs.shape[0] == 3 else inputs[inputs.shape[0] // 2]
    inputs = inputs.detach().cpu()[:3 if len(inputs) == 3 else 1]  # of other numbers of bands the first
    picture = as_picture((inputs if inputs.dtype == torch.uint8 else inputs.float()).numpy())
    image = Image.fromarray(np.ascontiguousarray(picture[..., ::-1]) if swap else picture)
    return image.convert('RGB')


def thumbnail(inputs: torch.Tensor, swap: bool) -> bytes:
    """A JPEG file of what the model saw, inputs (C, H, W) or of clips, see :func:`as_image`; at most :data:`THUMB`
    pixels on a side."""
    from PIL import Image, ImageOps
    image = as_image(inputs, swap)
    file = io.BytesIO()
    ImageOps.contain(image, (THUMB, THUMB), Image.Resampling.BICUBIC).save(file, 'JPEG', quality=85)
    return file.getvalue()
