# SPDX-License-Identifier: Apache-2.0
"""Weights out of ONNX exports made here: the same tensors under the same names."""

import warnings

import numpy as np
import pytest
import torch

from mmpetl.weights import WeightFileError, convert
from mmpetl.weights.onnx_reader import Graph, clip_visual_from_onnx, dinov2_from_onnx

onnx = pytest.importorskip('onnx', reason='onnx is not installed')
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]


def export(model, path, size=16):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(model, torch.zeros(1, 3, size, size), str(path), dynamo=False, opset_version=14)
    return path


@pytest.fixture
def dino(randomise):
    pytest.importorskip('timm', reason='peer timm is not installed')
    from timm.models.vision_transformer import VisionTransformer
    peer = randomise(
        VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=0, init_values=1.))

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = peer

        def forward(self, x):
            return self.model.forward_features(x)

    return Encoder().train(False)


def test_dinov2(dino, tmp_path):
    state = dinov2_from_onnx(export(dino, tmp_path / 'dino.onnx'))
    want = dino.model.state_dict()
    assert state.keys() == want.keys()
    assert all(torch.equal(state[key], want[key]) for key in want)


def test_positions_kept_apart(dino, tmp_path):
    """A resized grid is exported apart from the position of the class token, which equals the token itself in published
    files."""
    with torch.no_grad():
        dino.model.pos_embed[:, 0] = dino.model.cls_token[:, 0]
    want = dino.model.pos_embed.clone()
    path = export(dino, tmp_path / 'dino.onnx')
    model = onnx.load(path)
    kept = [item for item in model.graph.initializer if item.name != 'model.pos_embed']
    del model.graph.initializer[:]
    grid = onnx.numpy_helper.from_array(want[:, 1:].detach().numpy(), 'onnx::Reshape_1')
    model.graph.initializer.extend([*kept, grid])
    shape = onnx.numpy_helper.from_array(np.array([1, 4, 4, 32]), 'shape')
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, onnx.helper.make_node('Identity', ['model.cls_token'], ['onnx::Concat_1']))
    model.graph.node.insert(1, onnx.helper.make_node('Reshape', ['onnx::Reshape_1', 'shape'], ['grid']))
    model.graph.node.insert(2, onnx.helper.make_node('Concat', ['onnx::Concat_1', 'grid'], ['table'], axis=1))
    onnx.save(model, path)
    assert torch.equal(dinov2_from_onnx(path)['pos_embed'], want)


@pytest.fixture
def clip(randomise):
    transformers = pytest.importorskip('transformers', reason='peer transformers is not installed')
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        projection_dim=24,
        attn_implementation='eager')
    return randomise(transformers.CLIPVisionModelWithProjection(config))


def test_clip_float_and_int8(clip, tmp_path):
    class Embeds(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vision_model, self.visual_projection = clip.vision_model, clip.visual_projection

        def forward(self, x):
            return self.visual_projection(self.vision_model(pixel_values=x).pooler_output)

    want = clip.state_dict()
    path = export(Embeds().train(False), tmp_path / 'clip.onnx')
    state = clip_visual_from_onnx(path)
    assert set(want) - set(state) == set()
    assert all(torch.equal(state[key].reshape(want[key].shape), want[key]) for key in want)
    assert convert(state, None, 'clip')[1].extras['proj'].shape == (32, 24)

    quantization = pytest.importorskip('onnxruntime.quantization', reason='onnxruntime is not installed')
    quantization.quantize_dynamic(path, tmp_path / 'int8.onnx', per_channel=True, op_types_to_quantize=['MatMul'])
    rounded = clip_visual_from_onnx(tmp_path / 'int8.onnx')
    linears = [key for key in want if key.endswith('weight') and want[key].ndim == 2 and 'embedding' not in key]
    assert len(linears) == 13
    for key in want:
        step = want[key].abs().amax(-1, keepdim=True) / 127 if key in linears else torch.zeros(1)
        assert bool(((rounded[key].reshape(want[key].shape) - want[key]).abs() <= step.clamp(min=1e-7)).all()), key
        assert key not in linears or not torch.equal(rounded[key], want[key])


def test_wrong_graphs(dino, tmp_path):
    path = export(dino, tmp_path / 'dino.onnx')
    with pytest.raises(WeightFileError, match='no CLIP image tower in this graph'):
        clip_visual_from_onnx(path)
    linear = export(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4)), tmp_path / 'linear.onnx')
    with pytest.raises(WeightFileError, match='no DINOv2 encoder in this graph'):
        dinov2_from_onnx(linear)
    (tmp_path / 'noise.onnx').write_bytes(b'\xff' * 100)
    with pytest.raises(WeightFileError, match='not an ONNX file'):
        Graph(tmp_path / 'noise.onnx')
    with pytest.raises(FileNotFoundError):
        Graph(tmp_path / 'none.onnx')


def test_weights_in_another_file_are_not_followed(dino, tmp_path):
    model = onnx.load(export(dino, tmp_path / 'dino.onnx'))
    onnx.save(model, tmp_path / 'outside.onnx', save_as_external_data=True, location='weights.bin', size_threshold=0)
    with pytest.raises(WeightFileError, match='keeps its weights in another file'):
        dinov2_from_onnx(tmp_path / 'outside.onnx')
