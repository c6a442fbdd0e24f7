# SPDX-License-Identifier: Apache-2.0
"""What keeps mmaction2, mmpretrain, mmsegmentation and mmengine from being imported beside other packages."""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, List, Optional


def _placeholder(name: str, **attributes: Any) -> types.ModuleType:
    """Put an empty package into ``sys.modules``, so that importing it succeeds."""
    module = types.ModuleType(name, 'Placeholder made by mmpetl.compat.')
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)  # who looks for a loader finds none
    module.__dict__.update(attributes, __mmpetl_stub__=True)
    sys.modules[name] = module
    return module


def _folder(package: str) -> Optional[Path]:
    """Folder of an installed top-level package, found without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _lacks_drn(mmaction: Path) -> bool:
    """Whether the wheel's ``localizers/__init__.py`` imports a folder ``drn`` that is not there."""
    folder = mmaction / 'models' / 'localizers'
    init = folder / '__init__.py'
    return init.is_file() and 'drn' in init.read_text(encoding='utf-8') and not (folder / 'drn').exists()


def _transformers_moved(user: Path) -> bool:
    """Whether a file of upstream's language models imports from ``transformers`` what transformers >= 5 no longer has
    there."""
    transformers = _folder('transformers')
    provider = transformers / 'modeling_utils.py' if transformers else None
    name = 'apply_chunking_to_forward'
    return bool(user.is_file() and name in user.read_text(encoding='utf-8')
                and provider and provider.is_file() and name not in provider.read_text(encoding='utf-8'))


def _vindlu_breaks(mmaction: Path) -> bool:
    """Whether mmaction2's VindLU cannot be imported."""
    return _transformers_moved(mmaction / 'models' / 'multimodal' / 'vindlu' / 'modeling_bert.py')


def leave_multimodal_out() -> bool:
    """Let mmpretrain 1.2.0 be imported where pycocotools and transformers >= 5 are both installed.

    With both it imports its language models, which fail with these transformers; with one of them it registers
    placeholders that name what is missing, as it does from here on.

    Returns:
        Whether the language models are left out for this reason.
    """
    from mmpretrain.utils import dependency
    mmpretrain = _folder('mmpretrain')
    breaks = bool(mmpretrain and _transformers_moved(
        mmpretrain / 'models' / 'multimodal' / 'blip' / 'language_model.py'))
    if breaks:
        dependency.WITH_MULTIMODAL = False
    return breaks


def install_mmaction_stub() -> List[str]:
    """Put placeholders where ``import mmaction.models`` of mmaction2 1.2.0 would fail.

    These are ``localizers.drn``, which the wheel lacks, and the video-language model VindLU where transformers >= 5 is
    installed. It must run before the first ``import mmaction.models``: a failed import leaves half-registered modules
    behind.

    Returns:
        Names of the placeholder packages that are in place; empty where mmaction2 is absent or needs none.
    """
    mmaction = _folder('mmaction')
    drn, vindlu = 'mmaction.models.localizers.drn', 'mmaction.models.multimodal.vindlu'
    if mmaction and drn not in sys.modules and _lacks_drn(mmaction):
        cls = type('DRN', (), {'__doc__': 'Placeholder: the mmaction2 wheel does not ship this localizer.'})
        _placeholder(drn, drn=_placeholder(f'{drn}.drn', DRN=cls))
    if mmaction and vindlu not in sys.modules and _vindlu_breaks(mmaction):
        _placeholder(vindlu, __all__=[])
    return [name for name in (drn, vindlu) if hasattr(sys.modules.get(name), '__mmpetl_stub__')]


def install_deepspeed_stub() -> bool:
    """Put placeholders where mmengine 0.10.7 imports the 1-bit optimizers, which DeepSpeed 0.19 no longer has.

    Returns:
        Whether the placeholder is in place; False where DeepSpeed is absent or needs none.
    """
    name, folder = 'deepspeed.runtime.fp16.onebit', _folder('deepspeed')
    if folder and name not in sys.modules and not list((folder / 'runtime' / 'fp16').glob('onebit*')):
        doc = {'__doc__': 'Placeholder: this DeepSpeed has no 1-bit optimizers.'}
        _placeholder(name, **{cls: type(cls, (), doc) for cls in ('OnebitAdam', 'OnebitLamb', 'ZeroOneAdam')})
    return hasattr(sys.modules.get(name), '__mmpetl_stub__')


def install_mmcv_ops_stub() -> bool:
    """Put a placeholder where mmsegmentation and mmdetection import the compiled operations that mmcv-lite lacks.

    ``mmcv.ops`` is imported by heads and backbones that need none of them as well. A model that does run such an
    operation ends with one line that names it.

    Returns:
        Whether the placeholder is in place; False where the full mmcv is installed.
    """
    name, folder = 'mmcv._ext', _folder('mmcv')
    if folder and name not in sys.modules and not list(folder.glob('_ext*')):

        def absent(operation: str) -> Any:
            if operation.startswith('__'):
                raise AttributeError(operation)

            def call(*args: Any, **kwargs: Any) -> None:
                raise RuntimeError(
                    f"mmcv-lite has no compiled operation '{operation}': install the full mmcv 2.1.0 for it")

            return call

        _placeholder(name, __getattr__=absent)
        bricks = sys.modules.get('mmcv.cnn.bricks.transformer')
        if bricks and not hasattr(bricks, 'MultiScaleDeformableAttention'):  # imported before, without operations
            from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
            vars(bricks)['MultiScaleDeformableAttention'] = MultiScaleDeformableAttention
    return hasattr(sys.modules.get(name), '__mmpetl_stub__')
