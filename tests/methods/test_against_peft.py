# SPDX-License-Identifier: Apache-2.0
"""Methods that peft has too, against peft on a whole vision transformer: outputs and gradients."""

import peft
import pytest
import torch
from cases import features, perturb
from mmpretrain.models import VisionTransformer

import mmpetl
from mmpetl.registry import METHODS
from mmpetl.sites import BlockSpec

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
#: Ops that peft can reach in mmpretrain's ViT, whose q, k and v are one layer.
MODULES = dict(proj='attn.proj', fc1='ffn.layers.0.0', fc2='ffn.layers.1')
OPS = tuple(MODULES)
#: What PCG64 gives.
FIRST = [0.02421162, -0.04069635, -0.08114519]
TARGETS = list(MODULES.values())


def vit():
    torch.manual_seed(0)
    model = VisionTransformer(arch=ARCH, img_size=16, patch_size=8)
    perturb(model, 0.2)
    model.double().train(False)  # which returns nothing
    return model


def pair(petl, config):
    """Our model and peft's on the same base."""
    ours = mmpetl.attach(vit(), petl)
    theirs = peft.get_peft_model(vit().float(), config).base_model.model.double()  # PiSSA starts in float32 only
    ours.train(False), theirs.train(False)
    return ours, theirs


def their_modules(model):
    for i, layer in enumerate(model.layers):
        for op, name in MODULES.items():
            yield i, op, layer.get_submodule(name)


def compare(ours, theirs, tied, tolerance=1e-6, needs_pairs=True):
    """Same outputs, and same gradients of each pair of parameters in ``tied``, relative to the largest."""
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for model in (ours, theirs):
        features(model(x)).square().sum().backward()
    with torch.no_grad():
        a, b = features(ours(x)), features(theirs(x))
    assert (a - b).abs().max() <= tolerance * b.abs().max()
    assert tied or not needs_pairs
    for mine, other in tied:
        assert mine.grad.abs().max() > 0
        scale = max(1., other.grad.abs().max().item())
        assert (mine.grad - other.grad.view_as(mine)).abs().max() <= tolerance * scale


def tie(pairs):
    """Random values away from the start, equal in both."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for mine, other in pairs:
            mine.add_(torch.randn(mine.shape, generator=generator, dtype=torch.float64) * 0.2)
            other.copy_(mine.view_as(other))
    return pairs


def factor_pairs(ours, theirs, name):
    found = []
    for i, op, module in their_modules(theirs):
        factors = ours.petl[name].blocks[str(i)][op]
        found += [(factors.down, module.lora_A['default'].weight), (factors.up, module.lora_B['default'].weight)]
    return found


def test_dora():
    ours, theirs = pair([dict(type='DoRA', rank=3, ops=OPS, alpha=6)],
                        peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, use_dora=True))
    magnitudes = [(ours.petl['dora'].blocks[str(i)][op].magnitude, m.lora_magnitude_vector['default'].weight)
                  for i, op, m in their_modules(theirs)]
    assert all((mine - other).abs().max() <= 1e-6 for mine, other in magnitudes), 'the start is the norm of the weight'
    compare(ours, theirs, tie(factor_pairs(ours, theirs, 'dora') + magnitudes))


def test_rank_stabilized_lora():
    ours, theirs = pair([dict(type='LoRA', rank=4, ops=OPS, alpha=6, rank_stabilized=True)],
                        peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, use_rslora=True))
    compare(ours, theirs, tie(factor_pairs(ours, theirs, 'lora')))


def test_pissa():
    """peft takes the start off its base, here it is subtracted: the same model, also after both have moved."""
    ours, theirs = pair([dict(type='LoRA', rank=3, ops=OPS, alpha=6, init='pissa')],
                        peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, init_lora_weights='pissa'))
    with torch.no_grad():
        for i, op, module in their_modules(theirs):
            factors = ours.petl['lora'].blocks[str(i)][op]
            theirs_start = module.lora_B['default'].weight @ module.lora_A['default'].weight
            assert (factors.up @ factors.down - theirs_start).abs().max() <= 1e-6
            # Singular vectors have a sign of their own.
            sign = torch.sign((factors.down * module.lora_A['default'].weight).sum(1))
            for tensor in (factors.down, factors.start_down):
                tensor.mul_(sign[:, None])
            for tensor in (factors.up, factors.start_up):
                tensor.mul_(sign)
    # peft works out its start in float32.
    compare(ours, theirs, tie(factor_pairs(ours, theirs, 'lora')), tolerance=5e-6)


def test_vera():
    ours, theirs = pair([dict(type='VeRA', rank=4, ops=OPS)],
                        peft.VeraConfig(r=4, target_modules=TARGETS, d_initial=0.1, save_projection=True))
    vera, tied = ours.petl['vera'], []
    for i, op, module in their_modules(theirs):
        with torch.no_grad():
            module.vera_A['default'].copy_(vera.a)
            module.vera_B['default'].copy_(vera.b)
        vectors = vera.blocks[str(i)][op]
        assert torch.equal(vectors['d'], module.vera_lambda_d['default']), 'the same start'
        tied += [(vectors['d'], module.vera_lambda_d['default']), (vectors['b'], module.vera_lambda_b['default'])]
    compare(ours, theirs, tie(tied))


def test_vera_matrices_never_change():
    """An adapter stores the seed only: the first numbers, and the spread of all."""
    specs = [BlockSpec(0, 0, 768, 12, 3072)]
    vera = METHODS.build(dict(type='VeRA', specs=specs, rank=256, ops='q'))
    other = METHODS.build(dict(type='VeRA', specs=specs, rank=256, ops='q', seed=1))
    bound = (6 / 768)**0.5
    assert vera.a.abs().max() <= bound and vera.b.abs().max() <= (6 / 256)**0.5
    assert abs(vera.a.std().item() / bound * 3**0.5 - 1) < 0.01 and abs(vera.a.mean().item()) < 1e-3
    assert not torch.equal(vera.a, other.a)
    assert vera.a[0, :3].tolist() == pytest.approx(FIRST, abs=1e-7)


def test_ia3():
    ours, theirs = pair([dict(type='IA3', ops='proj,fc1'), dict(type='IA3', ops='fc2', at='input', name='ia3_ff')],
                        peft.IA3Config(target_modules=TARGETS, feedforward_modules=[MODULES['fc2']]))
    tied = [(ours.petl['ia3_ff' if op == 'fc2' else 'ia3'].blocks[str(i)][op], m.ia3_l['default'])
            for i, op, m in their_modules(theirs)]
    compare(ours, theirs, tie(tied))


def test_loha():
    ours, theirs = pair([dict(type='LoHa', rank=3, ops=OPS, alpha=6)],
                        peft.LoHaConfig(r=3, alpha=6, target_modules=TARGETS))
    tied = []
    for i, op, module in their_modules(theirs):
        f = ours.petl['loha'].blocks[str(i)][op]
        tied += [(f.up1, module.hada_w1_a['default']), (f.down1, module.hada_w1_b['default']),
                 (f.up2, module.hada_w2_a['default']), (f.down2, module.hada_w2_b['default'])]
    compare(ours, theirs, tie(tied))


@pytest.mark.parametrize('rank, both', [(1, True), (2, False), (8, False)])
def test_lokr(rank, both):
    ours, theirs = pair([dict(type='LoKr', rank=rank, ops=OPS, alpha=rank, decompose_both=both)],
                        peft.LoKrConfig(r=rank, alpha=rank, target_modules=TARGETS, decompose_both=both))
    tied = []
    for i, op, module in their_modules(theirs):
        for number, side in enumerate(ours.petl['lokr'].blocks[str(i)][op].values(), 1):
            if side.is_whole:
                tied.append((side.whole, getattr(module, f'lokr_w{number}')['default']))
            else:
                tied += [(side.up, getattr(module, f'lokr_w{number}_a')['default']),
                         (side.down, getattr(module, f'lokr_w{number}_b')['default'])]
    compare(ours, theirs, tie(tied))


@pytest.mark.parametrize('share', [False, True])
@pytest.mark.parametrize('terms', [0, 5])
def test_oft(share, terms):
    """peft's exact inverse takes Q with the other sign than its series."""
    ours, theirs = pair([dict(type='OFT', block_size=4, ops=OPS, block_share=share, neumann_terms=terms)],
                        peft.OFTConfig(oft_block_size=4, target_modules=TARGETS, block_share=share,
                                       use_cayley_neumann=bool(terms)))
    tied = tie([(ours.petl['oft'].blocks[str(i)][op], m.oft_R['default'].weight) for i, op, m in their_modules(theirs)])
    if not terms:
        with torch.no_grad():
            for mine, _ in tied:
                mine.neg_()
    compare(ours, theirs, [] if not terms else tied, needs_pairs=bool(terms))
    if not terms:
        assert all((mine.grad + other.grad).abs().max() <= 1e-6 * max(1, other.grad.abs().max()) for mine, other in tied)


def test_boft():
    """On a CPU peft has one butterfly factor; its matrices are free, and their skew part counts."""
    ours, theirs = pair([dict(type='BOFT', block_size=4, factors=1, ops=OPS)],
                        peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, target_modules=TARGETS))
    scales, uppers = [], []
    rows, columns = torch.triu_indices(4, 4, 1)
    for i, op, module in their_modules(theirs):
        held = ours.petl['boft'].blocks[str(i)][op]
        scales.append((held['scale'], module.boft_s['default']))
        uppers.append((held['upper'], module.boft_R['default']))
    tie(scales)
    with torch.no_grad():
        for mine, other in uppers:
            mine.add_(torch.randn(mine.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.2)
            other[..., rows, columns], other[..., columns, rows] = mine, -mine
    compare(ours, theirs, scales)
    for mine, other in uppers:
        gradient = other.grad[..., rows, columns] - other.grad[..., columns, rows]
        assert (mine.grad - gradient).abs().max() <= 1e-6 * max(1, gradient.abs().max())


def test_adalora():
    """Outputs, gradients with the penalty, importance, and what is taken away, over a whole training side by side."""
    config = peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, tinit=2, tfinal=3, deltaT=2, beta1=0.8, beta2=0.7,
                                orth_reg_weight=0.3, total_step=12, target_modules=TARGETS)
    ours = mmpetl.attach(vit(), [dict(type='AdaLoRA', rank=4, ops=OPS, alpha=6)])
    wrapped = peft.get_peft_model(vit().float(), config)
    theirs, names = wrapped.base_model.model.double(), []
    ours.train(False), theirs.train(False)
    method, tied = ours.petl['adalora'], []
    for i, op, m in their_modules(theirs):
        m.ranknum['default'].fill_(4 - 1e-5)  # peft adds this number to the rank
        triplets = method.triplets()[f'{i}.{op}']
        tied += [(triplets.left, m.lora_B['default']), (triplets.values, m.lora_E['default']),
                 (triplets.right, m.lora_A['default'])]
        names.append(f'{i}.{op}')
    compare(ours, theirs, tie(tied))
    optimizers = [torch.optim.SGD([pair[j] for pair in tied], lr=0.01) for j in (0, 1)]
    allocator, x = method.allocator(2, 12, 2, 3, 2, 0.8, 0.7), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    regularised = [p for n, p in theirs.named_parameters() if 'lora_A' in n or 'lora_B' in n]
    eye, taken = torch.eye(4, dtype=torch.float64), []
    for step in range(1, 13):
        grams = [p @ p.T if p.shape[0] == 4 else p.T @ p for p in regularised]
        penalties = method.orthogonality('released'), sum(torch.norm(g - eye, p='fro') for g in grams) / len(grams)
        for optimizer, model, penalty in zip(optimizers, (ours, theirs), penalties):
            optimizer.zero_grad()
            (features(model(x)).square().mean() + 0.3 * penalty).backward()
        assert all((a.grad - b.grad.view_as(a)).abs().max() <= 1e-9 * max(1, b.grad.abs().max()) for a, b in tied)
        for optimizer in optimizers:
            optimizer.step()
        allocator.step(step)
        wrapped.base_model.update_and_allocate(step)
        assert all((a - b.view_as(a)).abs().max() <= 1e-9 * max(1, b.abs().max()) for a, b in tied), step
        taken.append(sum(int((t.values == 0).sum()) for t in method.triplets().values()))
        if step == 8:
            ranks = wrapped.base_model.rankallocator
            found = {k: v for k, v in ranks.exp_avg_ipt.items() if 'lora_A' in k}
            for name in names:
                key = next(k for k in found if k.endswith(f'{name[0]}.{MODULES[name[2:]]}.lora_A.default'))
                assert torch.allclose(allocator.sensitivity[f'{name}.right'], ranks.exp_avg_ipt[key], rtol=1e-9, atol=0)
                assert torch.allclose(allocator.uncertainty[f'{name}.right'], ranks.exp_avg_unc[key], rtol=1e-9, atol=0)
    assert taken[:3] == [0, 0, 0] and taken[3] == 8 and taken[8:] == [12] * 4
    features_before = features(ours(x))
    ranks = allocator.finish()
    assert sum(ranks.values()) == 12 and len(set(ranks.values())) > 1
    assert (features(ours(x)) - features_before).abs().max() <= 1e-12
    patterns = wrapped.base_model.peft_config['default'].rank_pattern
    assert sorted(ranks.values()) == sorted(sum(kept) for kept in patterns.values())


def test_a_magnitude_needs_the_output_of_the_base():
    for before in (dict(type='LoRA', ops='qv'), dict(type='SSF'), dict(type='PATT', ops='qk')):
        with pytest.raises(ValueError, match='put DoRA first in the list'):
            mmpetl.attach(vit(), [before, dict(type='DoRA', ops='q')])
    mmpetl.attach(vit(), [dict(type='LoRA', ops='v'), dict(type='DoRA', ops='q'), dict(type='LoRA', ops='q')])


@pytest.mark.parametrize('cfg, words', [
    (dict(type='LoRA', rank_stabilized=True), 'give alpha too'),
    (dict(type='LoRA', init='pissa', rank=17), 'rank <= 16'),
    (dict(type='VeRA', seed=-1), 'seed must be >= 0'),
    (dict(type='STAdapter'), r'needs a \(T, H, W\) token grid'),
    (dict(type='STAdapter', kernel=(2, 1, 1)), 'three odd numbers'),
])
def test_refusals(cfg, words):
    with pytest.raises(ValueError, match=words) as error:
        mmpetl.attach(vit(), [cfg])
    assert '\n' not in str(error.value)
