# SPDX-License-Identifier: Apache-2.0
"""Many runs as one thing: plan, trials, search, workers, rows, report, submission."""
