# SPDX-License-Identifier: Apache-2.0
"""Scores that set accuracy against the number of trainable parameters."""

import math


def _discounted(score: float, params: float, reference: float) -> float:
    if params < 0:
        raise ValueError(f'a model cannot have {params} trainable parameters')
    # + 1: a model that trains nothing keeps its whole score.
    return score * math.exp(-math.log10(params / reference + 1))


def pe_score(score: float, params: float) -> float:
    """Performance-efficiency of the ELEVATER benchmark: ``score * exp(-log10(params / 1e8 + 1))``.

    Source: the ELEVATER organisers' formula (arXiv 2204.08790). KAdaptation's 68.92 with 79,699 parameters gives 68.90.

    Args:
        score: Mean score over the suite, in any unit; the result has the same unit.
        params: Mean number of trainable parameters, heads included.

    Raises:
        ValueError: If ``params`` is negative.
    """
    return _discounted(score, params, 1e8)


def ppt_score(score: float, params: float) -> float:
    """Performance-parameter trade-off of V-PETL Bench: ``score * exp(-log10(params / 1e7 + 1))``.

    The benchmark takes accuracies as fractions and parameters without heads.

    Source: inferred from the benchmark's published table, of which it reproduces 16 of 19 rows to the digit and the
        others to 0.01.

    Args:
        score: Accuracy, in any unit; the result has the same unit.
        params: Number of trainable parameters.

    Raises:
        ValueError: If ``params`` is negative.
    """
    return _discounted(score, params, 1e7)
