# SPDX-License-Identifier: Apache-2.0
"""One run from a config to a checkpoint: flags, config, tasks, build, run, optimizers, several processes."""
