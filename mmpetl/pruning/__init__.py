# SPDX-License-Identifier: Apache-2.0
"""E2VPT's pruning: score, mask, rewind."""
