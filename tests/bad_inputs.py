# SPDX-License-Identifier: Apache-2.0
"""What a bad input must give: a status, no traceback, one line with what is wrong and how to mend it. Loaded by path, tests
are no package."""

import contextlib
import io
import re

#: Words by which a line says how to mend.
MENDS = re.compile(
    r'\b(give|gives|write|set|mend|name|did you mean|known|choose|must be|must divide|must not|leave|lower|check|begin|begins|'
    r'put|use|needs|need|close|remove|invalid choice|invalid \w+ value|required|add|take|takes|prepare|download|copy|save|load|'
    r'build|cannot|it has|make|unrecognized|wait|change|delete|has blocks|does not divide|which does not exist|adapted|expected|is the folder|loads?|weight format|is unchanged|look)\b')


def outcome(action):
    """(status, lines on stderr without the libraries' warnings) of a command."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = action()
        except SystemExit as stop:
            status = stop.code
    return status, [line for line in err.getvalue().splitlines() if line.strip()]


def fault(status, lines, said):
    """What is wrong with the answer to a bad input; '' if nothing is."""
    text = '\n'.join(lines)
    if not status:
        return 'it was taken'
    if 'Traceback' in text:
        return f'a traceback: {text[-500:]}'
    errors = [line for line in lines if 'error: ' in line]
    if len(errors) != 1:
        return f'{len(errors)} lines: {text[-500:]}'
    line = errors[0].split(' [traceback')[0]
    if said not in line:
        return f'it says: {line[-500:]}'
    return '' if MENDS.search(line) else f'it does not say how to mend it: {line}'
