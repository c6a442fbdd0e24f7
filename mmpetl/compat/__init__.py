# SPDX-License-Identifier: Apache-2.0
"""Remedies for the pinned stack: what has to be put right before mmengine, mmpretrain and mmaction2 work together
safely.

No function of another package is replaced. The remedies use mmengine's own extension points, plus placeholder modules
for what keeps the mmaction2 1.2.0 wheel, newer DeepSpeeds and what reads ``mmcv.ops`` from being imported. Two names of
other packages are set: mmpretrain's switch for its language models, and the class that mmcv leaves out where it was
imported without operations. Each remedy has a test that fails as soon as upstream no longer needs it.
"""

from .checkpointing import nonreentrant_checkpointing
from .environment import check_versions, environment_warnings, warn_environment
from .loading import (
    cut_config_texts,
    install_safe_loader,
    load_from_http,
    load_from_hub,
    load_from_local,
    load_from_zoo,
)
from .placeholders import install_deepspeed_stub, install_mmaction_stub, install_mmcv_ops_stub, leave_multimodal_out
from .processes import CPU_WRAPPER, init_cpu_distributed

__all__ = [
    'CPU_WRAPPER', 'check_versions', 'cut_config_texts', 'environment_warnings', 'init_cpu_distributed',
    'install_deepspeed_stub', 'install_mmaction_stub', 'install_mmcv_ops_stub', 'install_safe_loader',
    'leave_multimodal_out', 'load_from_http', 'load_from_hub', 'load_from_local', 'load_from_zoo',
    'nonreentrant_checkpointing', 'warn_environment'
]
