# SPDX-License-Identifier: Apache-2.0
"""Several processes without a GPU."""

import os

import torch


def init_cpu_distributed(backend: str = 'gloo') -> bool:
    """Create the process group for ``torchrun`` on a machine without an accelerator, where mmengine would call
    ``torch.cuda``.

    Returns:
        Whether this process runs in a CPU process group. Then DDP needs ``device_ids=None`` (see :data:`CPU_WRAPPER`).
    """
    from torch import distributed
    if 'RANK' not in os.environ or torch.cuda.is_available() or not distributed.is_available():
        return False
    if not distributed.is_initialized():
        distributed.init_process_group(backend)
    return True


#: ``model_wrapper_cfg`` for CPU processes: mmengine's default passes the local rank as a device.
CPU_WRAPPER = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
