# SPDX-License-Identifier: Apache-2.0
"""Stock modules -> ONNX: onnxruntime computes the same, for other batch sizes too."""

import pytest
import torch
from torch import nn

from mmpetl.weights import WeightFileError
from mmpetl.weights.export_onnx import to_onnx

runtime = pytest.importorskip('onnxruntime', reason='onnxruntime, which runs the graphs, is not installed')
pytest.importorskip('onnxscript', reason="onnxscript, which torch's exporter needs, is not installed")
pytestmark = pytest.mark.peers


def vit():
    from mmpretrain.models import VisionTransformer
    return VisionTransformer(
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128), img_size=16, patch_size=4)


def videomae():
    from mmaction.models.backbones.vit_mae import VisionTransformer
    return VisionTransformer(
        img_size=16, patch_size=4, embed_dims=32, depth=2, num_heads=2, mlp_ratio=4, qkv_bias=True, num_frames=4)


@pytest.mark.parametrize('build, shape', [(vit, (2, 3, 16, 16)), (videomae, (2, 3, 4, 16, 16))])
def test_equal_outputs_and_free_batch(randomise, image, tmp_path, build, shape):
    model = randomise(build())
    difference = to_onnx(model, image(*shape), tmp_path / 'm.onnx')
    assert difference < 1e-5
    session = runtime.InferenceSession(tmp_path / 'm.onnx', providers=['CPUExecutionProvider'])
    x = image(5, *shape[1:], seed=2)
    got = torch.from_numpy(session.run(None, {'x': x.numpy()})[0])
    want = model(x)
    want = want[-1] if isinstance(want, tuple) else want
    assert float((got - want).detach().abs().max()) < 1e-5
    assert [entry.name for entry in tmp_path.iterdir()] == ['m.onnx']


class Masked(nn.Module):
    """Makes a mask once per shape and keeps it, as Video Swin does."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    def forward(self, x):
        if x.shape[1] not in self.kept:
            self.kept[x.shape[1]] = (torch.arange(x.shape[1]) > 1).float()
        return x * self.kept[x.shape[1]]


def test_what_a_model_keeps_is_made_before_the_export(tmp_path, image):
    model = Masked().eval()
    assert to_onnx(model, image(2, 4), tmp_path / 'm.onnx') == 0
    assert type(model.kept[4]) is torch.Tensor and torch.equal(model(torch.ones(1, 4)), torch.tensor([[0., 0, 1, 1]]))


@pytest.mark.slow
def test_what_trains_is_exported_and_trains_on(tmp_path):
    """Attention over windows has other strides where weights train; the graph is made without."""
    import cases
    model = cases.BACKBONE['swin'].build([])
    model.eval()
    model.requires_grad_(True)
    assert to_onnx(model, cases.BACKBONE['swin'].inputs(2), tmp_path / 'm.onnx') < 1e-4
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_video_swin(tmp_path, image):
    """Merged and stock alike: shifted windows, several clips, any batch."""
    import cases
    model = cases.BACKBONE['video_swin'].build([dict(type='PATT', mid_dims=4)])
    cases.perturb(model, 0.02)
    model.eval()
    x = cases.BACKBONE['video_swin'].inputs(3)
    assert to_onnx(model, x[:2], tmp_path / 'm.onnx') < 1e-4
    session = runtime.InferenceSession(tmp_path / 'm.onnx', providers=['CPUExecutionProvider'])
    got = torch.from_numpy(session.run(None, {'x': x.numpy()})[0])
    torch.testing.assert_close(got, model(x).detach(), atol=1e-4, rtol=1e-4)


def test_refusals_write_nothing(tmp_path, image):
    with pytest.raises(WeightFileError, match='training mode'):
        to_onnx(nn.Linear(4, 4), torch.ones(2, 4), tmp_path / 'm.onnx')

    class Branching(nn.Module):
        def forward(self, x):
            return x if float(x.detach().sum()) > 0 else -x

    class Random(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    for module, cause in ((Branching(), 'cannot be exported'), (Random(), 'differs from the model')):
        module.train(False)
        with pytest.raises(WeightFileError, match=cause) as error:
            to_onnx(module, torch.ones(2, 4), tmp_path / 'm.onnx')
        assert '\n' not in str(error.value)
    assert not list(tmp_path.iterdir())
