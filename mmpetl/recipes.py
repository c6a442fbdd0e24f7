# SPDX-License-Identifier: Apache-2.0
"""The shipped configs by name: ``lora_videomae-small_...`` instead of its path. Imports nothing big."""

from pathlib import Path
from typing import Dict, List

from .suggest import nearest


def folder() -> Path:
    """Folder of the shipped configs: that of a checkout, else the one inside the installed package.

    Raises:
        FileNotFoundError: If neither is there.
    """
    package = Path(__file__).resolve().parent
    for path in (package.parent / 'configs', package / '.mim' / 'configs'):
        if (path / '_base_').is_dir():
            return path
    raise FileNotFoundError(f'{package / ".mim" / "configs"} does not exist: the installation is not complete; '
                            'install mmpetl again')


def recipes() -> Dict[str, Path]:
    """Name (file name without suffix, with its folder where two are alike) -> path of every shipped config."""
    found: Dict[str, List[Path]] = {}
    for path in sorted(folder().rglob('*.py')):
        if '_base_' not in path.parts:
            found.setdefault(path.stem, []).append(path)
    named = {}
    for stem, paths in found.items():
        for path in paths:
            named[stem if len(paths) == 1 else f'{path.parent.name}/{stem}'] = path
    return dict(sorted(named.items()))


def find_config(name: str) -> str:
    """Path of a config given by its path or, for a shipped one, by its name.

    Raises:
        FileNotFoundError: If there is none; near names are offered.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return str(path)
    known = recipes() if path.suffix != '.py' else {}
    if name in known:
        return str(known[name])
    longer = [p for p in known.values() if str(p.relative_to(folder()).with_suffix('')) == name]
    if longer:
        return str(longer[0])
    inside = path.parent == Path('.') or path.parent.is_dir()
    if path.suffix == '.py' or (path.parent != Path('.') and not known):
        if path.is_symlink():
            raise FileNotFoundError(f'config {name} is a link that leads nowhere: link it again, or name the file')
        local = [p.name for p in path.parent.glob('*.py')] if inside else []
        hint = nearest(path.name, local) if local else ''
        hint = hint if inside else f'; there is no folder {path.parent}, check the path'
        hint = hint if 'did you mean' in hint or not inside else '; name a file, or a config of `mmpetl config list`'
        raise FileNotFoundError(f'config {name} does not exist{hint}')
    alike = [key for key in known if key.endswith(f'/{name}')]
    hint = f'; did you mean {" or ".join(map(repr, alike))}?' if alike else nearest(name, known)
    hint = hint if 'did you mean' in hint else '; `mmpetl config list` names them'
    raise FileNotFoundError(f'{name} is neither a config file nor the name of a shipped config{hint}')
