# SPDX-License-Identifier: Apache-2.0
"""What a model, a config and a run know of themselves, put before :func:`mmpetl.weights.belongs.check_belongs`."""

import logging
import os
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence

from mmengine.logging import print_log
from torch import nn

from ..tuning import find_backbone, head_keys, model_facts, unwrap
from ..weights.belongs import check_belongs, normalisation_of


def check_adapter(model: nn.Module, header: Mapping[str, Any], source: str = '', force: bool = False,
                  classes: Optional[Sequence[str]] = None, pipeline: Any = None, normalisation: Any = None) -> None:
    """Compare an adapter with the model, and with the data where they are known.

    Args:
        model: Model with an attached backbone.
        header: Header of the adapter.
        source: Its file, for messages.
        force: Take it in spite of differences that change neither names nor shapes; each is logged.
        classes: Names of the classes of the data.
        pipeline: The test pipeline of the data.
        normalisation: That of the data, where the model has no data preprocessor.

    Raises:
        ValueError: The first difference, in one line that names both values.
    """
    if 'merged' in header:
        if len(find_backbone(model)[0].petl):
            raise ValueError(f'{source or "the file"} is a merged model, and the backbone of the config has methods: '
                             'set model.backbone.petl=[] and model.backbone.tune=[], or take the adapter itself')
        return  # a whole model: there is nothing that it must fit
    facts = model_facts(model)
    # The model's own data preprocessor is what acts on the pixels; the data's is only asked where there
    # is none.
    facts['normalisation'] = facts['normalisation'] or normalisation
    if not header.get('head'):  # the adapter of a bare backbone
        facts['parts'] = {}
    for line in check_belongs(header, dict(facts, classes=classes, pipeline=pipeline), source, force):
        print_log(line, 'current', logging.WARNING)


def check_head(model: nn.Module, given: Mapping[str, Any], source: str) -> None:
    """Compare the tensors of a head with the model's: mmengine would leave those out that do not fit.

    Raises:
        ValueError: The first that is missing or has another shape.
    """
    own = unwrap(model).state_dict()
    # Before loading: the message should say what the head lacks, not list all keys.
    for key in head_keys(model):
        if key not in given:
            raise ValueError(f'{source} has no {key}: the head of the model is another one than the adapter was '
                             'trained with; use the config with which it was trained')
        if given[key].shape != own[key].shape:
            raise ValueError(f'{source}: {key} has shape {tuple(given[key].shape)} in the adapter and '
                             f'{tuple(own[key].shape)} in the model: set the number of classes of the head to that of '
                             'the adapter')


def config_facts(cfg: Any) -> Dict[str, Any]:
    """Test pipeline, normalisation and class names as a config gives them, without building anything.

    Args:
        cfg: The config of a run.
    """
    dataset: Any = {}
    for name in ('test_dataloader', 'val_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset') or {}
        # Wrappers (a cache, repetition) stand around the data set that has the pipeline.
        while 'pipeline' not in dataset and isinstance(dataset.get('dataset'), Mapping):
            dataset = dataset['dataset']
        if dataset:
            break
    model = cfg.get('model') or {}
    # MMEngine takes it from either place.
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor')
    return dict(classes=_class_names(dataset), pipeline=dataset.get('pipeline'),
                normalisation=normalisation_of(preprocessor))


def _class_names(dataset: Mapping[str, Any]) -> Optional[Sequence[str]]:
    """Names that a data set's config lists, itself or in a file."""
    # OpenMMLab's data sets take them directly or as meta information.
    named = dataset.get('classes') or (dataset.get('metainfo') or {}).get('classes')
    if not isinstance(named, str):
        return list(named) if named else None
    path = os.path.join(os.path.expanduser(dataset.get('data_root') or ''), os.path.expanduser(named))
    if not os.path.isfile(path):
        return None
    # Windows editors put a mark before the first name.
    with open(path, encoding='utf-8-sig', errors='replace') as file:
        return [line.strip() for line in file if line.strip()]


@contextmanager
def forced(model: nn.Module, force: bool) -> Iterator[None]:
    """Within the context the backbone's own check passes over what ``force`` passes over."""
    base = find_backbone(model)[0].petl.base
    # The load hook cannot be handed an argument: torch calls it.
    base['force'] = force
    try:
        yield
    finally:
        # The next load asks for itself.
        base.pop('force', None)
