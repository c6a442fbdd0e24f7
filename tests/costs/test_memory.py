# SPDX-License-Identifier: Apache-2.0
"""What a training step keeps, against closed forms and limits; ViT-B, VideoMAE-B and Video Swin-B are measured on the
meta device.

C stands for one (B, N, C) tensor. A block through which a gradient flows must keep 10 C per token: the inputs of both
norms, q, k, v, the output of the attention, and the input of the activation (4 C).
"""

import pytest
import torch
from cases import BACKBONE, CASE, PAIRS, SIDE, features, perturb

import mmpetl
from mmpetl.costs.memory import on_meta, saved_bytes
from mmpetl.registry import MODELS

MIB = 2**20
#: Full fine-tuning of ViT-B/16 with explicit attention keeps this much for 8 images; with fused attention 896.9.
FULL = 1066.6 * MIB
VITS = [(c, b) for c, b in PAIRS if b.name in ('vit', 'clip')]


def kept(name, petl, shape=None, batch=8, **options):
    backbone = BACKBONE[name]
    with on_meta():
        model = MODELS.build({'type': backbone.type, **backbone.real, 'petl': petl, **options})
        model.train()
        return saved_bytes(model, torch.empty(batch, *(shape or (3, 224, 224))))


@pytest.mark.parametrize('name, memory, limit', [
    ('SSF', 'standard', 0.6),
    ('FacT-TT', 'standard', 0.6),
    ('FacT-TK', 'standard', 0.6),
    ('AdaptFormer', 'standard', 0.48),
    ('Adapter', 'standard', 0.52),
    ('Compacter', 'light', 0.47),
    ('AdaptFormer', 'light', 0.44),
    ('Adapter', 'light', 0.47),
    ('AdaptFormer', 'lightest', 0.27),
    ('SynQT', 'standard', 0.219),
    ('SynQT', 'light', 0.056),
])
def test_share_of_full_fine_tuning(name, memory, limit):
    assert kept('vit', CASE[name].real, memory=memory) <= limit * FULL


def test_prompts_of_vpt():
    assert kept('vit', CASE['VPT'].real) <= 8 * 70 * MIB


def test_a_block_keeps_what_it_must():
    """Two more blocks of LoRA keep 20 C and the code of the update; with separate products, q does not keep k's and v's
    memory."""
    token, found = 8 * 17 * 32 * 4, []
    for depth in (3, 5):
        arch = dict(embed_dims=32, num_layers=depth, num_heads=4, feedforward_channels=128)
        with on_meta():
            model = MODELS.build(
                dict(
                    type='mmpetl.VisionTransformer',
                    arch=arch,
                    img_size=32,
                    patch_size=8,
                    memory='light',
                    petl=[dict(type='LoRA', rank=2)]))
            model.train()
            found.append(saved_bytes(model, torch.empty(8, 3, 32, 32)))
    statistics = 8 * 17 * 4 * (2 * 2 + 4)  # mean and deviation of two norms, one number per query and head
    assert (found[1] - found[0]) / 2 == 9 * token + statistics  # 'light' also recomputes the input of the second norm


def test_apt_on_long_clips():
    """The published form with explicit attention keeps 2209 MiB per clip, full fine-tuning 2233 MiB."""
    assert kept('videomae', CASE['APT'].real, (3, 16, 224, 224), 1, memory='lightest') <= 0.14 * 2209 * MIB


def test_patt_and_adapter_on_video_swin():
    """The published form with explicit attention keeps 4473 MiB per clip of 32 frames."""
    assert kept('video_swin', CASE['PATT + AdaptFormer'].real, (3, 32, 224, 224), 1) <= 0.58 * 4473 * MIB


@pytest.mark.parametrize('name', ['vit', 'swin', 'videomae', 'video_swin'])
@pytest.mark.parametrize('method', ['LoRA', 'AdaptFormer', 'APT'])
def test_nothing_below_the_first_adapted_block(name, method):
    backbone, petl = BACKBONE[name], CASE[method].petl
    model = backbone.build([dict(petl[0], layers=-1)])
    model.train()
    inputs, blocks = [], model.petl.blocks
    handles = [b.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for b in blocks]
    features(model(backbone.inputs())).sum().backward()
    assert [x.requires_grad for x in inputs] == [False] * len(blocks)
    for handle in handles:
        handle.remove()


def test_the_upper_half_keeps_what_half_the_blocks_keep():
    def measured(depth, layers):
        arch = dict(embed_dims=32, num_layers=depth, num_heads=4, feedforward_channels=64)
        with on_meta():
            model = MODELS.build(dict(type='mmpetl.VisionTransformer', arch=arch, img_size=32, patch_size=8,
                                      petl=[dict(type='LoRA', rank=2, layers=layers)]))
            model.train()
            return saved_bytes(model, torch.empty(8, 3, 32, 32))

    assert measured(6, '3-5') == measured(3, None) > 0


#: Side methods give a vector and refuse the other forms of output.
STREAM = [(c, b) for c, b in VITS if c.name not in SIDE]


@pytest.mark.parametrize('case, backbone', STREAM, ids=[f'{c.name}-{b.name}' for c, b in STREAM])
def test_a_last_block_read_at_the_class_token_equals_the_whole(case, backbone):
    found = []
    for out_type in ('raw', 'cls_token'):
        torch.manual_seed(0)
        model = backbone.build(case.petl, out_type=out_type).double()
        perturb(model, 0.1)
        model.eval()
        y = features(model(backbone.inputs(dtype=torch.float64)))
        y = y[:, 0] if y.dim() == 3 else y
        (y * torch.linspace(-1, 1, y.shape[1])).square().sum().backward()
        found.append([y] + [torch.zeros(()) if p.grad is None else p.grad for p in model.petl.parameters()])
    short = model.petl.taps[-1].tokens_read == 1
    assert short == (case.name not in ('Convpass', 'Mona'))  # they read the whole grid
    assert all((a - b).abs().max() <= 1e-10 * max(1., a.abs().max().item()) for a, b in zip(*found))


@pytest.mark.parametrize('entry', ['registered', 'attach'])
def test_unknown_memory_setting(entry):
    with pytest.raises(ValueError, match="unknown memory setting 'ligth'; did you mean 'light'"):
        if entry == 'registered':
            BACKBONE['vit'].build(memory='ligth')
        else:
            mmpetl.attach(BACKBONE['vit'].build_upstream(), memory='ligth')


def test_a_compiled_training_step_is_one_graph():
    backbone, petl, found = BACKBONE['vit'], [dict(type='LoRA', rank=2), dict(type='SSF')], []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = backbone.build(petl, memory='light')
        perturb(model.petl)
        model.train()
        torch._dynamo.reset()
        run = torch.compile(model, backend='eager', fullgraph=True) if compiled else model
        with torch.autocast('cpu', torch.bfloat16):
            y = features(run(backbone.inputs()))
        y.float().square().mean().backward()
        found.append([p.grad for p in model.petl.parameters()])
    assert all((a - b).norm() <= 0.1 * a.norm() for a, b in zip(*found))


def test_pruning_prompts_shrinks_the_step():
    """In the stream (the textbook form) half of 50 prompts is a tenth of the tokens; as keys and values all 50 cost
    less than that."""
    found = {}
    for full in (True, False):
        for prompts in (50, 25):
            with on_meta():
                model = MODELS.build(
                    dict(type='mmpetl.VisionTransformer', arch='base', petl=[dict(type='E2VPT', num_tokens=prompts)]))
                model.petl.full_prompts = full
                model.petl.refresh()
                model.train()
                found[full, prompts] = saved_bytes(model, torch.empty(2, 3, 224, 224))
    assert found[True, 25] <= 0.95 * found[True, 50]
    assert found[False, 25] < found[False, 50] <= 0.95 * found[True, 25]
