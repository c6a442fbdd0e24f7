# SPDX-License-Identifier: Apache-2.0
"""The feature cache: a store of frozen features and the hook that fills and reads it."""
