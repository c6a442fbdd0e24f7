# SPDX-License-Identifier: Apache-2.0
"""Trained adapters as things: their files in use, banks of many, mixed batches, combinations."""
