# SPDX-License-Identifier: Apache-2.0
"""The methods' published code, imported out of checkouts that the caller has: nothing of it is shipped here.

Each :class:`Published` says which file of which repository holds the model, how its constructor is called, what it
trains, and how its parameters are called here, so that one set of weights can be given to both.
"""

import importlib
import importlib.util
import re
import sys
import types
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import torch
from torch import Tensor, nn

from mmpetl.weights.clip import OPENAI
from mmpetl.weights.rename import Rules, relabel
from mmpetl.weights.vit import HF, TIMM

State = Dict[str, Tensor]
#: The ViT that VPT and E2VPT share.
_VIT = r'transformer\.encoder\.layer\.(\d+)\.'
VPT_VIT: Rules = (
    (r'transformer\.embeddings\.cls_token', 'cls_token'),
    (r'transformer\.embeddings\.position_embeddings', 'pos_embed'),
    (r'transformer\.embeddings\.patch_embeddings\.(weight|bias)', r'patch_embed.projection.\1'),
    (r'transformer\.encoder\.encoder_norm\.(weight|bias)', r'ln1.\1'),
    (_VIT + r'attention_norm\.(weight|bias)', r'layers.\1.ln1.\2'),
    (_VIT + r'ffn_norm\.(weight|bias)', r'layers.\1.ln2.\2'),
    (_VIT + r'attn\.(q|k|v)(?:uery|ey|alue)\.(weight|bias)', r'layers.\1.attn.qkv.\3@\2'),
    (_VIT + r'attn\.out\.(weight|bias)', r'layers.\1.attn.proj.\2'),
    (_VIT + r'ffn\.fc1\.(weight|bias)', r'layers.\1.ffn.layers.0.0.\2'),
    (_VIT + r'ffn\.fc2\.(weight|bias)', r'layers.\1.ffn.layers.1.\2'),
)


@dataclass(frozen=True)
class Published:
    """One published model beside one method of ours.

    Attributes:
        name: Row of the table.
        flag: Option that names the folder, without dashes; '' where it is an installed package.
        repository: On GitHub.
        commit: Version that the stored figures are of.
        file: Model's file below the folder.
        build: (folder, packages) -> the model, which gives a feature (B, C) of an image.
        trains: Whether a parameter of it trains, by name.
        names: Names of the frozen weights here; a first pair that matches decides.
        method: Parameters by published name -> state of ``petl.<method>``.
        petl: Our method, as it is timed.
        checked: Our method with the same mathematics; None: as it is timed.
        backbone: Row of ``BACKBONES`` in tests/cases.py.
        stays_in_eval: Whether the published training never calls ``train()``.
        checked_in: Precision in which outputs are compared; PEViT's norms know float32 alone.
        note: What is not as published.
    """
    name: str
    flag: str
    repository: str
    commit: str
    file: str
    build: Callable[[Path, Optional[Path]], nn.Module]
    trains: Callable[[str], bool]
    names: Rules
    method: Callable[[State], State]
    petl: Dict[str, Any]
    checked: Optional[Dict[str, Any]] = None
    backbone: str = 'vit'
    stays_in_eval: bool = False
    checked_in: torch.dtype = torch.float64
    note: str = ''


# -- importing --------------------------------------------------------------------------------------------------------


def _stub(name: str, **contents: Any) -> types.ModuleType:
    found = types.ModuleType(name)
    found.__dict__.update(contents)
    return found


#: Imported by published files, but not used by the models; some need a display or packages that nothing else needs.
STUBS: Dict[str, Dict[str, Any]] = {'turtle': dict(forward=None), 'IPython': dict(embed=None),
                                    'src.utils.logging': dict(get_logger=lambda name: None)}


@contextmanager
def importing(folder: Path, packages: Optional[Path]) -> Iterator[None]:
    """Imports find ``folder`` first, then ``packages``; what they loaded is forgotten afterwards, as two checkouts call
    their package ``src``, and one needs a timm of its own."""
    roots = {'src', 'synqt', 'timm', *(name.split('.')[0] for name in STUBS)}

    def loaded() -> Dict[str, types.ModuleType]:
        return {name: each for name, each in sys.modules.items() if name.split('.')[0] in roots}

    before, path = loaded(), list(sys.path)
    for name in before:
        del sys.modules[name]
    sys.modules.update({name: _stub(name, **contents) for name, contents in STUBS.items()})
    sys.path[:0] = [str(each) for each in (folder, packages) if each]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(before)
        sys.path[:] = path


@contextmanager
def without_gpu() -> Iterator[None]:
    """``tensor.cuda()`` stays where it is on a machine that has none: one published model calls it."""
    original = Tensor.cuda
    if not torch.cuda.is_available():
        Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Tensor.cuda = original  # type: ignore[method-assign]


def module(name: str) -> Any:
    """A module by its name, of the folder that is being imported from."""
    return importlib.import_module(name)


def by_file(path: Path) -> Any:
    """A module by its file alone: the packages around PEViT's import much that its models do not need."""
    spec = importlib.util.spec_from_file_location(f'published_{path.stem}', path)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


# -- the models -------------------------------------------------------------------------------------------------------

#: What both prompt repositories ask of a config, with their defaults.
_PROMPTS = dict(LOCATION='prepend', INITIATION='random', NUM_DEEP_LAYERS=None, DEEP_SHARED=False, PROJECT=-1,
                VIT_POOL_TYPE='original')


def _vpt(folder: Path, packages: Optional[Path]) -> nn.Module:
    with importing(folder, packages):
        found = module('src.models.vit_prompt.vit').PromptedVisionTransformer
        config = types.SimpleNamespace(NUM_TOKENS=50, DEEP=True, DROPOUT=0.1, **_PROMPTS)
        return found(config, 'sup_vitb16_imagenet21k', img_size=224, num_classes=-1)


def _e2vpt(masks: bool) -> Callable[[Path, Optional[Path]], nn.Module]:

    def build(folder: Path, packages: Optional[Path]) -> nn.Module:
        config = types.SimpleNamespace(
            NUM_TOKENS_P=10, DEEP_P=True, DROPOUT_P=0.1, NUM_TOKENS=5, DEEP=True, DROPOUT=0., LAYER_BEHIND=True,
            SHARE_PARAM_KV=True, ORIGIN_INIT=2, SHARED_ACCROSS=False, QUERY_PROMPT_MODE=0, REWIND_STATUS=False,
            MASK_CLS_TOKEN=masks, CLS_TOKEN_MASK=masks, CLS_TOKEN_MASK_PIECES=masks, CLS_TOKEN_P_PIECES_NUM=16,
            MASK_CLS_TOKEN_ON_VK=False, **_PROMPTS)
        with importing(folder, packages):
            found = module('src.models.vit_prompt.vit_prompt_VK').PromptedVisionTransformer_Prompt_VK
            return found(config, 'sup_vitb16_imagenet21k', img_size=224, num_classes=-1)

    return build


def _synqt(tokens: int) -> Callable[[Path, Optional[Path]], nn.Module]:

    def build(folder: Path, packages: Optional[Path]) -> nn.Module:
        with importing(folder, packages):
            published = module('synqt')
            # Without the base's drop-path, which leaves frozen blocks as they are here.
            model = module('timm').create_model('vit_base_patch16_224_in21k', num_classes=0)
            settings = dict(token_nums=tokens, feat_scale=0.1, attn_scale=0.1, ffn_scale=0.1)
            published.set_synqt(types.SimpleNamespace(**settings), model)
        return model

    return build


def _pevit(file: str) -> Callable[[Path, Optional[Path]], nn.Module]:

    def build(folder: Path, packages: Optional[Path]) -> nn.Module:
        model = by_file(folder / file).VisionTransformer(224, 16, 768, 12, 12, 512)
        model.proj = None  # as where its head takes the projection in
        return model

    return build


def _peft(folder: Path, packages: Optional[Path]) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers import ViTConfig, ViTModel
    config = ViTConfig(attn_implementation='sdpa', hidden_dropout_prob=0., attention_probs_dropout_prob=0.,
                       layer_norm_eps=1e-6)
    base = ViTModel(config, add_pooling_layer=False)
    targets = ['query', 'value'] if any(n.endswith('.query') for n, _ in base.named_modules()) else ['q_proj', 'v_proj']

    class ClassToken(nn.Module):
        """The class token of a model whose output has all tokens."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).last_hidden_state[:, 0]

    return ClassToken(get_peft_model(base, LoraConfig(r=8, lora_alpha=8, target_modules=targets)))


# -- names of the methods' parameters ---------------------------------------------------------------------------------


def _picked(state: State, rules: Rules) -> State:
    """Renamed; what no rule names is left out."""
    return relabel({key: t for key, t in state.items() if any(re.fullmatch(rule, key) for rule, _ in rules)}, rules)


def _prompts(state: State) -> State:
    deep = state['transformer.deep_prompt_embeddings']
    return {f'prompts.{i}': p for i, p in enumerate([state['transformer.prompt_embeddings'][0], *deep])}


def _e2vpt_names(state: State) -> State:
    found = _prompts(state)
    for key, tensor in _picked(state, ((_VIT + r'attn\.deep_QKV_embeddings', r'kv_prompts.\1'),)).items():
        found[key] = tensor[None]
    masks = ((r'transformer\.prompt_soft_tokens_mask_cls_token', 'token_mask'),
             (r'transformer\.prompt_soft_tokens_pieces_mask_cls_token', 'segment_mask'))
    return {**found, **_picked(state, masks)}


_TWO = r'(fc[12]\.(?:weight|bias))'
_QSM = r'synqt\.qsm_block\.(\d+)\.'
SYNQT: Rules = (
    (r'synqt\.q', 'queries'), (r'synqt\.feat_scale', 'feat_scale'),
    (r'synqt\.prompt_ffn\.(\d+)\.mlp\.' + _TWO, r'blocks.\1.adapter.\2'),
    (_QSM + r'(norm[12]\..*|attn\.(?:q|kv)_norm\..*)', r'blocks.\1.qsm.\2'),
    (_QSM + r'attn\.((?:[qkv]_)?proj)\.mlp\.' + _TWO, r'blocks.\1.qsm.attn.\2.\3'),
    (_QSM + r'mlp\.mlp\.' + _TWO, r'blocks.\1.qsm.mlp.\2'),
    (_QSM + r'((?:attn|ffn)_scale)', r'blocks.\1.qsm.\2'),
    (r'synqt\.out_norm\.(.*)', r'row_norm.\1'), (r'synqt\.mlp\.mlp\.' + _TWO, r'row_adapter.\1'),
    (r'synqt\.out_combine\.get_weight\.fc1\.(.*)', r'combine.gate.\1'),
)

_CLIP = r'transformer\.resblocks\.(\d+)\.'
KADAPTATION: Rules = (
    (r'transformer\.phm_rule1_(left|right)', r'rules.768.q.\1'),
    (r'transformer\.phm_rule2_(left|right)', r'rules.768.v.\1'),
    (_CLIP + r'attn\.([qv])_proj_adapter1_(left|right)', r'blocks.\1.\2.\3'), (_CLIP + r'attn\.b', r'biases.\1'),
)
ADAPTER: Rules = (
    (_CLIP + r'adapter\.adapter_norm_before\.(.*)', r'blocks.\1.ffn.norm_in.\2'),
    (_CLIP + r'adapter\.adapter_down\.1\.(.*)', r'blocks.\1.ffn.down.\2'),
    (_CLIP + r'adapter\.adapter_up\.(.*)', r'blocks.\1.ffn.up.\2'),
)
_PEFT = r'model\.base_model\.model\.'
_BASE = r'(?:\.base_layer)?\.(weight|bias)'
PEFT_BASE: Rules = tuple((_PEFT + rule.replace(r'\.(weight|bias)', _BASE), new) for rule, new in HF)
_LORA = _PEFT + r'.*layers?\.(\d+)\..*\.([qv])(?:uery|alue|_proj)\.lora_'
PEFT: Rules = ((_LORA + r'A\.default\.weight', r'blocks.\1.\2.down'),
               (_LORA + r'B\.default\.weight', r'blocks.\1.\2.up'))


def _rules(rules: Rules) -> Callable[[State], State]:
    return lambda state: _picked(state, rules)


def _contains(*parts: str) -> Callable[[str], bool]:
    return lambda name: any(part in name for part in parts)


_E2VPT: Dict[str, Any] = dict(
    flag='e2vpt', repository='ChengHan111/E2VPT', commit='0902614', file='src/models/vit_prompt/vit_prompt_VK.py',
    trains=_contains('QKV', 'prompt'), names=VPT_VIT, method=_e2vpt_names)
_OURS_E2VPT = dict(type='E2VPT', num_tokens=10, num_kv_tokens=5, drop_rate=0.1, drop_per_sample=True)
_SYNQT: Dict[str, Any] = dict(
    flag='synqt', repository='taolinzhang/SynQT', commit='3870011', file='synqt.py', trains=_contains('synqt'),
    names=TIMM, method=_rules(SYNQT), note="without the base's drop-path")
_PEVIT: Dict[str, Any] = dict(flag='pevit', repository='eric-ai-lab/PEViT', backbone='clip', names=OPENAI,
                              stays_in_eval=True, checked_in=torch.float32)

PUBLISHED: List[Published] = [
    Published('VPT, 50 prompts', 'vpt', 'KMnP/vpt', '7f3942e', 'src/models/vit_prompt/vit.py', _vpt,
              _contains('prompt'), VPT_VIT, _prompts,
              dict(type='VPT', num_tokens=50, drop_rate=0.1, drop_per_sample=True)),
    Published('E2VPT', build=_e2vpt(False), petl=_OURS_E2VPT, note='masks off on both sides', **_E2VPT),
    Published('E2VPT, masks trained', build=_e2vpt(True), petl=dict(_OURS_E2VPT, variant='released'), **_E2VPT),
    Published('SynQT, 16 queries', build=_synqt(16), petl=dict(type='SynQT', num_tokens=16), **_SYNQT),
    Published('SynQT, 4 queries', build=_synqt(4), petl=dict(type='SynQT', num_tokens=4), **_SYNQT),
    Published('KAdaptation', commit='285803c', file='vision_benchmark/evaluation/model.py',
              build=_pevit('vision_benchmark/evaluation/model.py'), trains=_contains('adapter', 'phm_rule', 'attn.b'),
              method=_rules(KADAPTATION), petl=dict(type='KAdaptation'),
              checked=dict(type='KAdaptation', variant='released', tie_factors=False), **_PEVIT),
    Published('Adapter of PEViT', commit='8c9ab98', file='vision_benchmark/evaluation/adapter_model.py',
              build=_pevit('vision_benchmark/evaluation/adapter_model.py'), trains=_contains('adapter'),
              method=_rules(ADAPTER),
              petl=dict(type='Adapter', mid_dims=64, kind='pfeiffer', act='relu', pre_norm=True, init='normal'),
              **_PEVIT),
    Published('LoRA of peft', '', 'huggingface/peft', '', '', _peft, _contains('lora_'), PEFT_BASE, _rules(PEFT),
              dict(type='LoRA', rank=8)),
]
