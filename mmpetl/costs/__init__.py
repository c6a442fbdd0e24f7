# SPDX-License-Identifier: Apache-2.0
"""What a config costs before it runs: parameters, operations, memory."""
