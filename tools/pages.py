# SPDX-License-Identifier: Apache-2.0
"""Generated parts of pages, for the tools, the benchmarks and the tests; needs nothing but Python."""


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with ``text`` between its two marks, each on a line of its own.

    Raises:
        ValueError: If the page has not both marks, in this order.
    """
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f'the page has not the marks {begin!r} and {end!r}, one after the other: write both')
    return f'{before}{begin}\n{text}\n{end}{after}'
