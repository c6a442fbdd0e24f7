# SPDX-License-Identifier: Apache-2.0
"""A toy config with an attached backbone, its base file and adapters; loaded by path, tests are no package."""

import torch
from cases import perturb

import mmpetl
from mmpetl.training.build import build_model, read_config

CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmpetl.VisionTransformer', arch=dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64), img_size=32,
        patch_size=8, petl={petl}, tune={tune}, init_cfg=dict(type='Pretrained', checkpoint=r'{base}')),
    head=dict(type='LinearClsHead', num_classes={classes}, in_channels=32, loss=dict(type='CrossEntropyLoss')))
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
"""
ARCH = dict(arch=dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64), img_size=32, patch_size=8)


def write_base(folder, **options):
    """A base file with random weights, all of them away from their initial values; ``options`` of the base."""
    from mmpretrain.models import VisionTransformer
    torch.manual_seed(0)
    base = VisionTransformer(**ARCH, **options)
    perturb(base, 0.1)
    torch.save(dict(state_dict=base.state_dict()), folder / 'base.pth')
    return folder / 'base.pth'


def write_config(folder, petl, name='toy.py', classes=3, tune=()):
    """A config of ``petl`` on the base in ``folder``, which is written when it is missing."""
    base = folder / 'base.pth' if (folder / 'base.pth').exists() else write_base(folder)
    path = folder / name
    path.write_text(CONFIG.format(petl=repr(petl), base=base, classes=classes, tune=list(tune)))
    return path


def trained(config, seed=1, std=0.05):
    """The config's model on its base, with methods and head away from their start."""
    torch.manual_seed(seed)
    model = build_model(read_config(str(config)))
    model.backbone.init_weights()
    perturb(model.backbone.petl, std, seed)
    perturb(model.head, 0.3, seed)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if parameter.requires_grad and not name.startswith('petl.'):
                parameter.add_(std)
    return model.eval()


def write_adapter(config, path, seed=1, std=0.05, **facts):
    """An adapter file of :func:`trained`, and the model."""
    model = trained(config, seed, std)
    mmpetl.save_adapter(model, str(path), **facts)
    return model


def images(batch=2, seed=0):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
