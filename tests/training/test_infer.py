# SPDX-License-Identifier: Apache-2.0
"""``mmpetl.infer`` on what ships: the scores of ``tools/test.py``, on files and on arrays, with class names."""

import copy
import pickle
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image, ImageOps

import mmpetl
from mmpetl.registry import DATASETS
from mmpetl.training import run
from mmpetl.training.tasks import apply_task
from mmpetl.tuning import write_adapter

sys.path.insert(0, str(Path(__file__).parents[1]))
import shipped  # noqa: E402


def parts(path: str) -> set:
    """What decides how a config infers: types of data set, transforms and head."""
    cfg = apply_task(copy.deepcopy(shipped.read(path)))
    dataset, head = cfg.test_dataloader.dataset, cfg.model.get('head') or cfg.model.cls_head
    return {dataset.type, *(f'{t.type} in {dataset.type}' for t in dataset.pipeline), head.type}


def chosen() -> list:
    """A few configs with every part by default, all of them in the long run; tests/configs/test_lifecycle.py infers with
    more of them, after training."""
    often = shipped.cover({path: parts(path) for path in shipped.CONFIGS})
    return [pytest.param(p, marks=() if p in often else pytest.mark.slow, id=Path(p).stem) for p in shipped.CONFIGS]


def trained(path: str, folder: Path) -> tuple:
    config = shipped.shrink(path, folder)
    cfg = Config.fromfile(str(config))
    model = shipped.stir(cfg)
    adapter = str(folder / 'adapter.safetensors')
    head = getattr(model, 'head', None) or model.cls_head
    known = DATASETS.build(cfg.test_dataloader.dataset).metainfo.get('classes')
    names = list(known or (f'name {c}' for c in range(head.num_classes)))
    write_adapter(model, adapter, classes=names)
    return str(config), adapter, cfg, names


@pytest.mark.parametrize('path', chosen())
def test_scores_are_those_of_the_test(path, tmp_path):
    config, adapter, cfg, names = trained(path, tmp_path / 'run')
    out = tmp_path / 'scores.pkl'
    run.test([config, adapter, '--work-dir', str(tmp_path / 'work'), '--out', str(out)])
    with open(out, 'rb') as file:
        tested = [np.asarray(p['pred_score']) for p in pickle.load(file)]
    files = shipped.paths_of(cfg)[:6]
    found = mmpetl.infer(config, adapter, files, device='cpu', batch_size=4)
    for result, wanted in zip(found, tested, strict=False):
        np.testing.assert_allclose(result['pred_scores'], wanted, atol=1e-5)
        assert result['pred_class'] == names[result['pred_label']] == names[int(wanted.argmax())]
    arrays = [shipped.array_of(f) for f in files]
    for order in ('rgb', 'bgr'):
        given = arrays if order == 'rgb' else [a[..., ::-1] for a in arrays]
        for result, wanted in zip(mmpetl.infer(config, adapter, given, device='cpu', channel_order=order), tested):
            np.testing.assert_allclose(result['pred_scores'], wanted, atol=1e-5)
    assert torch.tensor(np.stack(tested)).std(0).max() > 1e-4, 'all inputs alike: the comparison could not fail'


@pytest.fixture(scope='module')
def image_run(tmp_path_factory):
    return trained('configs/quickstart/lora.py', tmp_path_factory.mktemp('image'))


def test_one_input_of_any_form(image_run):
    """A path, a Path, an array, a Pillow picture: same scores, without a label anywhere."""
    config, adapter, cfg, names = image_run
    path = shipped.paths_of(cfg)[0]
    picture = ImageOps.exif_transpose(Image.open(path)).convert('RGB')
    wanted, = mmpetl.infer(config, adapter, path, device='cpu')
    assert wanted['input'] == path and wanted['pred_class'] in names
    assert wanted['pred_score'] == pytest.approx(wanted['pred_scores'].max())
    cv2_scores = mmpetl.infer(config, adapter, [Path(path), picture, np.asarray(picture), mmcv.imread(path)[..., ::-1]],
                              device='cpu')
    for result in cv2_scores:
        np.testing.assert_allclose(result['pred_scores'], wanted['pred_scores'], atol=1e-5)
    wrong, = mmpetl.infer(config, adapter, np.asarray(picture), device='cpu', channel_order='bgr')
    assert abs(wrong['pred_scores'] - wanted['pred_scores']).max() > 1e-4, 'the order of the channels has no effect'


@pytest.mark.filterwarnings('ignore')
def test_upstreams_inferencer_takes_a_shipped_config(image_run):
    """It reads pictures itself and leaves out a transform named LoadImageFromFile only."""
    from mmpretrain import ImageClassificationInferencer
    config, adapter, cfg, names = image_run
    files = shipped.paths_of(cfg)[:2]
    for theirs, ours in zip(ImageClassificationInferencer(config, pretrained=adapter, device='cpu')(files),
                            mmpetl.infer(config, adapter, files, device='cpu'), strict=True):
        np.testing.assert_allclose(theirs['pred_scores'], ours['pred_scores'], atol=1e-5)
        assert theirs['pred_label'] == ours['pred_label']


@pytest.mark.parametrize('given, said', [
    (np.zeros((4, 4)), r'input 0 is an array of float64 and shape \(4, 4\); give uint8.*\(H, W, 3\).*channel_order'),
    (np.zeros((4, 4, 4), np.uint8), r'shape \(4, 4, 4\)'),
    (np.zeros((0, 4, 3), np.uint8), r'shape \(0, 4, 3\)'),
    (torch.zeros(3, 4, 4), 'input 0 is a Tensor; give a path or an array'),
    (None, 'input 0 is a NoneType'),
    ('nowhere.png', 'nowhere.png: no such file'),
    ('/tmp', '/tmp: is a folder: give the files in it'),
])
def test_bad_inputs_are_named(image_run, given, said):
    config, adapter, *_ = image_run
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        mmpetl.infer(config, adapter, [given], device='cpu')


@pytest.mark.parametrize('options, said', [(dict(channel_order='gbr'), "channel_order='gbr' must be 'rgb' or 'bgr'"),
                                           (dict(batch_size=0), 'batch_size=0 must be')])
def test_bad_options_are_named(image_run, options, said):
    config, adapter, cfg, _ = image_run
    with pytest.raises(ValueError, match=said):
        mmpetl.infer(config, adapter, shipped.paths_of(cfg)[0], device='cpu', **options)


def test_the_decoder_is_that_of_the_config(tmp_path):
    from mmpetl.training.infer import Predictor
    config, adapter, cfg, _ = trained('configs/video_demo/lora.py', tmp_path)
    for decoder in ('pyav', 'opencv'):
        predictor = Predictor(config, adapter, 'cpu',
                              cfg_options={'test_dataloader.dataset.pipeline.0.decoder': decoder})
        assert predictor.transforms[0].decoder == decoder
        assert predictor(shipped.paths_of(cfg)[0])[0]['pred_scores'].shape == (6, )
    with pytest.raises(ValueError, match=r'array of uint8 and shape \(4, 4, 3\); give uint8.*\(T, H, W, 3\)'):
        predictor(np.zeros((4, 4, 3), np.uint8))
