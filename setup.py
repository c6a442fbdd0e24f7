# SPDX-License-Identifier: Apache-2.0
"""Packaging: ``pip install .`` or ``pip install -e .``; configs and tools travel along under ``mmpetl/.mim``."""

import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ('configs', 'tools', 'model-index.yml')


def requirements(name: str) -> list[str]:
    """Lines of requirements/<name>.txt without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [text for text in (line.split('#')[0].strip() for line in lines) if text]


def version() -> str:
    """The version that mmpetl/version.py states."""
    scope: dict[str, str] = {}
    exec((ROOT / 'mmpetl' / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


def readme() -> str:
    """The README as long description."""
    path = ROOT / 'README.md'
    return path.read_text(encoding='utf-8') if path.exists() else ''


def add_mim_extension(target: Path, link: bool) -> None:
    """Put configs, tools and the model index into ``target``, where MIM looks for them; as links in an editable
    installation."""
    target.mkdir(parents=True, exist_ok=True)
    for name in MIM:
        source, copy = ROOT / name, target / name
        if copy.is_symlink() or copy.is_file():
            copy.unlink()
        elif copy.is_dir():
            shutil.rmtree(copy)
        if not source.exists():
            continue
        if link:
            copy.symlink_to(os.path.relpath(source, target))
        elif source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
        else:
            shutil.copy2(source, copy)


class BuildWithMim(build_py):
    """``build_py`` that also ships ``mmpetl/.mim``."""

    def run(self) -> None:
        super().run()
        target = ROOT if self.editable_mode else Path(self.build_lib)
        add_mim_extension(target / 'mmpetl' / '.mim', link=self.editable_mode)


EXTRAS = {name: requirements(name) for name in ('viz', 'convert', 'export', 'readers', 'dense', 'tune', 'hub', 'dev')}
EXTRAS['all'] = sorted({line for name in ('viz', 'convert', 'export', 'readers', 'hub') for line in EXTRAS[name]})

setup(
    name='mmpetl',
    version=version(),
    description='Parameter-efficient transfer learning of vision transformers for the OpenMMLab stack',
    long_description=readme(),
    long_description_content_type='text/markdown',
    author='The mmpetl authors',
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    keywords=
    'parameter-efficient transfer learning, adapters, prompt tuning, LoRA, vision transformer, video, OpenMMLab',
    packages=find_packages(include=['mmpetl', 'mmpetl.*']),
    package_data={'mmpetl': ['py.typed', '__init__.pyi', 'sweeps/page/*']},
    python_requires='>=3.10,<3.14',
    install_requires=requirements('runtime'),
    extras_require=EXTRAS,
    entry_points={'console_scripts': ['mmpetl = mmpetl.commands.main:main']},
    cmdclass={'build_py': BuildWithMim},
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: Console',
        'Environment :: GPU :: NVIDIA CUDA',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    zip_safe=False,
)
