# SPDX-License-Identifier: Apache-2.0
"""Readers of video files: the frame with the asked number, upright, whatever container and codec.

Nothing here imports mmpetl or torch, so that the processes that try videos start at once (:mod:`.serve`).
"""
