# SPDX-License-Identifier: Apache-2.0
"""Registries of mmpetl: children of MMEngine's, under the scope ``mmpetl``.

Configs keep ``default_scope = 'mmpretrain'`` or ``'mmaction'`` and write ``mmpetl.X`` for what this package adds.
``locations`` are imported at the first look-up, so importing :mod:`mmpetl` stays cheap.
"""

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import LOOPS as ROOT_LOOPS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import PARAM_SCHEDULERS as ROOT_PARAM_SCHEDULERS
from mmengine.registry import STRATEGIES as ROOT_STRATEGIES
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry

METHODS = Registry('method', scope='mmpetl', locations=['mmpetl.methods'])
MODELS = Registry('model', parent=ROOT_MODELS, scope='mmpetl', locations=['mmpetl.backbones', 'mmpetl.models'])
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope='mmpetl',
                 locations=['mmpetl.hooks', 'mmpetl.features.hook', 'mmpetl.pruning.state'])
LOOPS = Registry('loop', parent=ROOT_LOOPS, scope='mmpetl', locations=['mmpetl.hooks.loops', 'mmpetl.pruning.loop'])
DATASETS = Registry('dataset', parent=ROOT_DATASETS, scope='mmpetl', locations=['mmpetl.datasets'])
TRANSFORMS = Registry('transform', parent=ROOT_TRANSFORMS, scope='mmpetl', locations=['mmpetl.datasets'])
METRICS = Registry('metric', parent=ROOT_METRICS, scope='mmpetl', locations=['mmpetl.evaluation'])
OPTIM_WRAPPERS = Registry(
    'optimizer wrapper', parent=ROOT_OPTIM_WRAPPERS, scope='mmpetl', locations=['mmpetl.training.optim'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=ROOT_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmpetl',
    locations=['mmpetl.training.optim'])
PARAM_SCHEDULERS = Registry(
    'parameter scheduler',
    parent=ROOT_PARAM_SCHEDULERS,
    scope='mmpetl',
    locations=['mmpetl.training.schedulers'])
STRATEGIES = Registry('strategy', parent=ROOT_STRATEGIES, scope='mmpetl', locations=['mmpetl.training.parallel'])
FUNCTIONS = Registry('function', parent=ROOT_FUNCTIONS, scope='mmpetl', locations=['mmpetl.training.parallel'])
