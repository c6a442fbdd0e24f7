# SPDX-License-Identifier: Apache-2.0
"""An adapter knows what it belongs to: every way of loading compares, and refuses a difference in one line with both
values."""

import ast
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from safetensors.torch import load_file, save_file

import mmpetl
from mmpetl.commands.inspect import inspect_file
from mmpetl.commands.main import build_parser
from mmpetl.training import run
from mmpetl.training.build import build_model, load_trained, read_config
from mmpetl.training.flags import train_parser
from mmpetl.training.run import build_runner
from mmpetl.weights import adapter_file
from mmpetl.weights.belongs import check_belongs, pipeline_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests'))
import cases  # noqa: E402
import suite_data  # noqa: E402
import toy_model  # noqa: E402

CONFIG = """
_base_ = ['{root}/configs/_base_/default_runtime.py']
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=2)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', constructor='mmpetl.TrainableOptimWrapperConstructor',
                     optimizer=dict(type='AdamW', lr=1e-2))
param_scheduler = []
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
                           to_rgb=True),
    backbone=dict(type='mmpetl.VisionTransformer', img_size=32, patch_size=8,
                  arch=dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64),
                  petl=[dict(type='LoRA', rank=2, alpha=4), dict(type='AdaptFormer', mid_dims=4, drop_rate=0.)],
                  init_cfg=dict(type='Pretrained', checkpoint=r'{folder}/base.pth')),
    head=dict(type='LinearClsHead', in_channels=32, num_classes=3, loss=dict(type='CrossEntropyLoss')))
pipeline = [dict(type='mmpetl.LoadImage'), dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')]
data = dict(type='mmpetl.ListDataset', data_root=r'{folder}', ann_file='list.txt', classes=['red', 'green', 'blue'],
            pipeline=pipeline)
train_dataloader = dict(batch_size=3, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=data)
val_dataloader = train_dataloader
test_dataloader = train_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
log_level = 'WARNING'
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A finished run: config, adapter, checkpoint."""
    folder = tmp_path_factory.mktemp('belongs')
    toy_model.write_base(folder)
    for i in range(6):
        suite_data.put(str(folder / f'{i}.png'), suite_data.image_bytes(i % 3, i))
    suite_data.put_text(str(folder / 'list.txt'), [f'{i}.png {i % 3}' for i in range(6)])
    (folder / 'config.py').write_text(CONFIG.format(root=ROOT, folder=folder))
    run.train([str(folder / 'config.py'), '--work-dir', str(folder / 'work')])
    return folder


#: What may differ: (key of the config, other value, what the line says of both values).
DIFFERENCES = {
    'alpha': ('model.backbone.petl.0.alpha', 8, r'LoRA has alpha=4 in the adapter and alpha=8 here'),
    'rank': ('model.backbone.petl.0.rank', 3, r'LoRA has rank=2 in the adapter and rank=3 here'),
    'ops': ('model.backbone.petl.0.ops', 'qk', r"LoRA has ops='qv' in the adapter and ops='qk' here"),
    'scale': ('model.backbone.petl.1.scale', 0.5, r'AdaptFormer has scale=0.1 in the adapter and scale=0.5 here'),
    'layers': ('model.backbone.petl.1.layers', '0', r"AdaptFormer has layers=None in the adapter and layers='0' here"),
    'methods': ('model.backbone.petl', [dict(type='SSF')], 'the adapter holds LoRA, AdaptFormer, the model has SSF'),
    'tune': ('model.backbone.tune', ['*ln1*'], r"tune is \[\] in the adapter and \['\*ln1\*'\] here"),
    'heads': ('model.backbone.arch.num_heads', 2,
              r'attention heads per block: \[4, 4\] in the adapter and \[2, 2\] here'),
    'output': ('model.backbone.out_type', 'avg_featmap',
               r"the output of the backbone: 'cls_token' in the adapter and 'avg_featmap' here"),
    'head': ('model.head.type', 'mmpetl.FeatureHead',
             r"head has type='LinearClsHead' in the adapter and type='FeatureHead' here"),
    'num_classes': ('model.head.num_classes', 4, r'head has num_classes=3 in the adapter and num_classes=4 here'),
    'mean': ('model.data_preprocessor.mean', [0, 0, 0], r'mean=\[123.675, 116.28, 103.53\] in the adapter and mean=\[0(.0)?, 0(.0)?, 0(.0)?\] here'),
    'to_rgb': ('model.data_preprocessor.to_rgb', False, 'to_rgb=True in the adapter and to_rgb=False here'),
    'classes': ('data.classes', ['blue', 'green', 'red'],
                "class 0 is 'red' in the adapter and 'blue' here, the same names in another order"),
    'more classes': ('data.classes', ['red', 'green', 'blue', 'black'],
                     "3 classes in the adapter and 4 here; 'black' is in one of them only"),
    'pipeline': ('pipeline.1.scale', (64, 64),
                 r'step 1 of the test pipeline, Resize, has scale=\[32, 32\] in the adapter and scale=\[64, 64\] here'),
    'base': ('model.backbone.init_cfg.checkpoint', 'other.pth', 'wrong base: '),
}
#: Differences of the data, which a model alone does not have.
OF_DATA = ('classes', 'more classes', 'pipeline')


def changed(folder: Path, name: str) -> Path:
    """The config with one difference."""
    key, value, _ = DIFFERENCES[name]
    cfg = Config.fromfile(str(folder / 'config.py'))
    if key == 'data.classes':
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            cfg[loader].dataset.classes = value
    elif key.startswith('pipeline'):
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            cfg[loader].dataset.pipeline[1].scale = value
    elif name == 'base':
        other = torch.load(folder / 'base.pth')['state_dict']
        torch.save({'state_dict': {k: v + 0.1 for k, v in other.items()}}, folder / 'other.pth')
        cfg.merge_from_dict({key: str(folder / 'other.pth')})
    else:
        cfg.merge_from_dict({key: value})
    path = folder / f'{name.replace(" ", "_")}.py'
    path.write_text('\n'.join(f'{k} = {v!r}' for k, v in cfg.to_dict().items()))
    return path


def adapter(folder):
    return str(folder / 'work/adapter.safetensors')


def checkpoint(folder):
    return str(folder / 'work/epoch_2.pth')


def model_of(config):
    return build_model(read_config(str(config)))


def command(*words):
    args = build_parser(words[0]).parse_args(list(map(str, words)))
    return args.run(args)


def by_the_tool(config, folder, *force):
    return run.test([str(config), adapter(folder), '--work-dir', str(folder / 'tested'), *force])


def load_from(config, folder, *force):
    options = ['--cfg-options', f'load_from={adapter(folder)}', 'train_cfg.max_epochs=1']
    args = train_parser().parse_args([str(config), '--work-dir', str(folder / 'loaded'), *force, *options])
    runner = build_runner(run.train_config(args))
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.load_or_resume()


def resume(config, folder, *force):
    args = train_parser().parse_args(
        [str(config), '--work-dir', str(folder / 'resumed'), '--resume', checkpoint(folder), *force])
    runner = build_runner(run.train_config(args))
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.load_or_resume()


def bank(config, folder, force=''):
    model = model_of(config)
    model.backbone.init_weights()
    mmpetl.AdapterBank(model).add_file('other', adapter(folder), force=bool(force))


def serve(config, folder, force=''):
    model = model_of(config)
    model.backbone.init_weights()
    served = mmpetl.AdapterBank(model)
    served.serve({'other': adapter(folder)}, force=bool(force))
    served['other']


def hot_swap(config, folder, force=''):
    model = model_of(config)
    model.backbone.init_weights()
    mmpetl.AdapterBank(model, 'own').hot_swap('own', adapter(folder), force=bool(force))


def stock_runner(config, folder, *force):
    cfg = Config.fromfile(str(config))
    cfg.update(load_from=adapter(folder), custom_hooks=[], work_dir=str(folder / 'stock'), force_adapter=bool(force))
    build_runner(cfg).test()


#: Every way in which an adapter comes into a model: what a user types.
WAYS = {
    'tools/test.py': by_the_tool,
    'tools/test.py, no AdapterHook': stock_runner,
    'load_from': load_from,
    '--resume': resume,
    'merge': lambda c, f, *force: command('merge', c, adapter(f), '-o', f / 'merged.pth', *force),
    'export': lambda c, f, *force: command('export', c, adapter(f), '-o', f / 'e.onnx', *force),
    'infer': lambda c, f, force='': mmpetl.infer(str(c), adapter(f), str(f / '0.png'), 'cpu', force=bool(force)),
    'infer, checkpoint': lambda c, f, force='': mmpetl.infer(
        str(c), checkpoint(f), str(f / '0.png'), 'cpu', force=bool(force)),
    'load_trained': lambda c, f, force='': load_trained(model_of(c), checkpoint(f), None, bool(force)),
    'load_adapter': lambda c, f, force='': mmpetl.load_adapter(model_of(c), adapter(f), force=bool(force)),
    'bank.add_file': bank,
    'bank.serve': serve,
    'bank.hot_swap': hot_swap,
    'load_state_dict': lambda c, f: load_checkpoint(model_of(c), adapter(f), 'cpu'),
    'inspect --config': lambda c, f: inspect_file(adapter(f), str(c)),
}
#: These end in a refusal of their own: AdaptFormer cannot be merged.
UNFOLDED = ('merge', )
#: Ways that know the model alone, not its data.
MODEL_ALONE = ('load_trained', 'load_adapter', 'bank.add_file', 'bank.serve', 'bank.hot_swap', 'load_state_dict')
#: Which differences each way must see besides those that all ways are tried with.
TRIED = {'tools/test.py': tuple(DIFFERENCES), 'load_adapter': tuple(DIFFERENCES)}


def rows():
    for way in WAYS:
        for name in TRIED.get(way, ('alpha', 'heads', 'mean', 'classes', 'pipeline')):
            if name in OF_DATA and way in MODEL_ALONE or way == 'load_state_dict' and name == 'mean':
                continue
            # a bank brings the file's own methods
            yield way, 'to_rgb' if way in ('bank.add_file', 'bank.serve') and name == 'alpha' else name


@pytest.mark.parametrize('way, name', list(rows()))
def test_every_way_refuses_every_difference(trained, way, name):
    with pytest.raises(ValueError) as error:
        WAYS[way](changed(trained, name), trained)
    text = str(error.value)
    assert '\n' not in text

    assert re.search(DIFFERENCES[name][2], text), text


@pytest.mark.parametrize('way', [w for w in WAYS if w not in UNFOLDED])
def test_what_belongs_is_taken(trained, way):
    WAYS[way](trained / 'config.py', trained)


@pytest.mark.parametrize('way, name', [(w, 'mean') for w in WAYS if w not in (
    'load_state_dict', 'inspect --config', 'merge', 'export')] + [('merge', 'pipeline'), ('load_adapter', 'alpha'),
                                                                 ('tools/test.py', 'classes')])
def test_force_takes_it_all_the_same(trained, way, name):
    if way == 'merge':
        with pytest.raises(ValueError, match='cannot be merged'):  # AdaptFormer: past the comparison
            WAYS[way](changed(trained, name), trained, '--force')
        return
    WAYS[way](changed(trained, name), trained, '--force')


def test_scores_would_have_been_wrong(trained):
    """What the check prevents: the same file under another alpha, or in another order of the classes."""
    right = mmpetl.infer(str(trained / 'config.py'), adapter(trained), str(trained / '0.png'), 'cpu')[0]
    forced = mmpetl.infer(str(changed(trained, 'mean')), adapter(trained), str(trained / '0.png'), 'cpu', force=True)[0]
    assert np.abs(right['pred_scores'] - forced['pred_scores']).max() > 1e-3


def test_an_adapter_is_not_resumed(trained):
    with pytest.raises(ValueError, match='an adapter file cannot be resumed.*give --resume a checkpoint'):
        run.train([str(trained / 'config.py'), '--work-dir', str(trained / 'r'), '--resume', adapter(trained)])


def test_the_header_says_it_all(trained):
    header = adapter_file.read_header(adapter(trained))
    assert [m['type'] for m in header['methods']] == ['LoRA', 'AdaptFormer']
    assert header['methods'][1]['act'] == 'relu' and header['methods'][0]['layers'] is None
    model = header['model']
    assert model['heads'] == [4, 4] and model['dims'] == [32, 32] and model['grid'] == [4, 4]
    assert model['parts']['head'] == {**model['parts']['head'], 'type': 'LinearClsHead', 'num_classes': 3}
    assert model['normalisation']['to_rgb'] is True
    assert header['classes'] == ['red', 'green', 'blue']
    assert [t['type'] for t in header['preprocessing']['pipeline']] == ['mmpetl.LoadImage', 'Resize', 'PackInputs']


def test_files_of_earlier_versions(trained, tmp_path):
    """A header that names only what was not left to its default, and knows nothing of heads."""
    header = adapter_file.read_header(adapter(trained))
    header['methods'] = [dict(type='LoRA', rank=2, alpha=4, name='lora'),
                         dict(type='AdaptFormer', mid_dims=4, drop_rate=0., name='adaptformer')]
    del header['model']
    path = tmp_path / 'old.safetensors'
    save_file(load_file(adapter(trained)), path, {'mmpetl': json.dumps(header)})
    mmpetl.load_adapter(model_of(trained / 'config.py'), str(path))
    for name in ('alpha', 'scale'):
        with pytest.raises(ValueError, match=DIFFERENCES[name][2]):
            mmpetl.load_adapter(model_of(changed(trained, name)), str(path))
    with pytest.raises(ValueError, match='to_rgb=True in the adapter'):
        mmpetl.load_adapter(model_of(changed(trained, 'to_rgb')), str(path))


@pytest.mark.parametrize('row', cases.METHODS, ids=lambda row: row.name)
def test_arguments_of_all_methods_survive_the_file(row, tmp_path):
    """All arguments are in the header, and the header builds the same methods again."""
    init_default_scope('mmpretrain')
    backbone = next(backbone for case, backbone in cases.PAIRS if case is row)
    model = backbone.build(row.petl)
    path = str(tmp_path / 'a.safetensors')
    mmpetl.save_adapter(model, path)
    again = backbone.build(row.petl) if 'frames' in backbone.kwargs else backbone.build_upstream()
    again.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('petl.')}, strict=False)
    mmpetl.load_adapter(again, path)
    assert again.petl.facts()['methods'] == model.petl.facts()['methods']
    assert all(set(m.arguments) == set(f) - {'type', 'name'}
               for m, f in zip(model.petl.values(), model.petl.facts()['methods']))


def test_scopes_and_silent_keys_are_no_difference():
    a = [dict(type='mmpetl.VideoInit', decoder='pyav'), dict(type='mmpretrain.Resize', scale=(3, 3)),
         dict(type='PackInputs', meta_keys=('a', ))]
    b = [dict(type='VideoInit'), dict(type='Resize', scale=[3, 3]), dict(type='PackInputs')]
    assert pipeline_of(a) == pipeline_of(b)
    assert pipeline_of([dict(type='TestTimeAug', transforms=[])]) is None


# -- one function decides ---------------------------------------------------------------------------------------------

#: Function -> why it may read tensors of an adapter, or put tensors into a model, without asking.
READS = {
    'mmpetl/adapters/peft_folder.py:_tensors': 'reads for what compares every tensor with the model',
    'mmpetl/adapters/push.py:push': 'sends the file as it is',
    'mmpetl/training/config.py:_check_checkpoint': 'looks for epoch and iteration; the runner loads it, and its hook asks',
    'mmpetl/backbones/foreign_build.py:build_timm': 'reads a base; an adapter asks about it when it is put on',
    'mmpetl/compat/loading.py:load_from_local': 'reads for MMEngine, whose models ask in their load hook',
    'mmpetl/commands/inspect.py:inspect_file': 'describes a file; with a config, _try asks',
    'mmpetl/pruning/state.py:restore': 'reads the values of a pruning run',
    'mmpetl/training/lifecycle.py:name_base': 'looks whether load_from is a base; the runner loads it and asks',
    'mmpetl/training/work_dir.py:_look_into': 'reads how far a checkpoint is; the runner loads it and asks',
}
ASKS = {'check_belongs', 'check_adapter', 'check_run', 'load_adapter', 'load_trained'}


def functions_that_load():
    """(file:function, whether it asks) of every function that opens an adapter file or a weight file, or puts a state
    dict into a model."""
    for path in sorted((ROOT / 'mmpetl').rglob('*.py')):
        name = str(path.relative_to(ROOT))
        if name.startswith(('mmpetl/weights/', 'mmpetl/methods/', 'mmpetl/datasets/')):
            continue  # these have no model
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                called = {c.func.attr if isinstance(c.func, ast.Attribute) else getattr(c.func, 'id', '')
                          for c in ast.walk(node) if isinstance(c, ast.Call)}
                opens = any(ast.unparse(c.func) == 'adapter_file.load' or ast.unparse(c.func) == 'load_file'
                            for c in ast.walk(node) if isinstance(c, ast.Call))
                if opens:
                    yield f'{name}:{node.name}', bool(called & ASKS)


def test_every_function_that_opens_an_adapter_asks():
    found = dict(functions_that_load())
    assert {'mmpetl/adapters/files.py:load_adapter', 'mmpetl/adapters/store.py:read_adapter',
            'mmpetl/adapters/bank.py:hot_swap', 'mmpetl/training/build.py:load_trained'} <= set(found)
    assert set(READS) <= set(found), 'the list names functions that are gone'
    silent = [name for name, asks in found.items() if not asks and name not in READS]
    assert not silent, f'these open a weight file and never ask whether it belongs: {silent}'


def test_the_one_function_is_asked_on_every_way(trained, monkeypatch):
    import mmpetl.adapters.bank as in_bank
    import mmpetl.adapters.facts as in_adapters
    import mmpetl.adapters.store as in_store
    import mmpetl.backbones.load_hook as in_loading

    class Asked(Exception):
        pass

    def spy(*_, **__):
        raise Asked

    for module in (in_bank, in_adapters, in_store, in_loading):
        monkeypatch.setattr(module, 'check_belongs', spy)
    for way in WAYS:
        with pytest.raises(Asked):
            WAYS[way](trained / 'config.py', trained)


def test_bare_header_is_compared_where_known():
    header = dict(methods=[dict(type='LoRA', rank=2)], tune=[], backbone='x', base={})
    assert check_belongs(header, dict(methods=[dict(type='LoRA', rank=2)], defaults=[{}])) == []
    with pytest.raises(ValueError, match='rank=2 in the adapter and rank=4 here'):
        check_belongs(header, dict(methods=[dict(type='LoRA', rank=4)], defaults=[{}]))
    passed = check_belongs(header, dict(methods=[dict(type='LoRA', rank=4)], defaults=[{}]), force=True)
    assert len(passed) == 1
