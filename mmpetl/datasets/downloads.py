# SPDX-License-Identifier: Apache-2.0
"""Where the data of the benchmark suites and of the action data sets come from, and how to unpack them.

What has an address is fetched by ``mmpetl fetch NAME``. What stands behind a form has its steps instead; the same
command prints them and says what is still missing of what they lead to.
"""

import stat
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from ..weights.reading import open_regular
from .tables import ELEVATER, FGVC, VTAB

_BLOB = 'https://cvinthewildeus.blob.core.windows.net/datasets'
_TOOLKIT = 'https://github.com/Computer-Vision-in-the-Wild/Elevater_Toolkit_IC'
_KNOWLEDGE = 'https://raw.githubusercontent.com/eric-ai-lab/PEViT/main/vision_benchmark'
_SPLITS = 'https://drive.google.com/drive/folders/1mnvxTkYxmOr2W9QjcgS64UBpoJ4UmKaM'
# confirm=t: past the page which says that a file of this size was not searched for viruses
_VTAB_ZIP = ('https://drive.usercontent.google.com/download?export=download&confirm=t&id='
             '1yZKwiKdsBzTfBgnStRveYMokc7GMMd5p')
_K400 = 'https://s3.amazonaws.com/kinetics/400'


@dataclass(frozen=True)
class File:
    """One file of a data set.

    Attributes:
        url: Its address.
        target: Where it goes below the data set's folder.
        unpack: Folder below the data set's folder that receives the members of the archive; None keeps the file as it
            is (``.rar`` archives, which no Python reads; images that are read from their zip file).
    """
    url: str
    target: str
    unpack: Optional[str] = None


@dataclass(frozen=True)
class Data:
    """One data set, or the files that a suite needs beside it.

    Attributes:
        name: What ``mmpetl fetch`` calls it.
        title: What it is, one phrase.
        root: Default folder; a name that begins with '~' lies in the cache folder.
        files: What can be fetched.
        page: Official page.
        steps: What the user does by hand, before or after fetching.
        needs: Paths (or patterns) below ``root`` of which each must be there in the end.
    """
    name: str
    title: str
    root: str
    files: Tuple[File, ...]
    page: str
    steps: Tuple[str, ...] = ()
    needs: Tuple[str, ...] = ()


#: Zip files of the ELEVATER data sets by list, as the benchmark's own table of downloads names them.
_ZIPS: Dict[str, Sequence[str]] = {
    'caltech-101': ('train.zip', 'test.zip'), 'cifar-10': ('train.zip', 'val.zip'),
    'cifar-100': ('train_images.zip', 'test_images.zip'), 'country211': ('train.zip', 'test.zip'),
    'dtd': ('train.zip', 'test.zip'), 'eurosat_clip': ('2750.zip', ),
    'fgvc-aircraft-2013b-variants102': ('train.zip', 'test.zip'), 'food-101': ('train.zip', 'val.zip'),
    'gtsrb': ('train.zip', 'final_test.zip'), 'kitti-distance': ('train_images.zip', 'test_images.zip'),
    'mnist': ('train.zip', 'val.zip'), 'oxford-flower-102': ('train.zip', 'test.zip'),
    'oxford-iiit-pets': ('train.zip', 'val.zip'), 'patch-camelyon': ('train.zip', 'test.zip'),
    'rendered-sst2': ('train.zip', 'test.zip'), 'resisc45_clip': ('images.zip', ),
    'stanford-cars': ('train.zip', 'val.zip'), 'voc-2007-classification': ('train.zip', 'test.zip'),
    'fer-2013': ('train.zip', 'test.zip'), 'hateful-memes': ('train.zip', 'test.zip'),
}


def _elevater() -> Iterator[Data]:
    for task in ELEVATER.tasks.values():
        lists = [task.splits[s].files[0] for s in ('train', 'test')]
        names = [*lists, *([task.classes_file] if task.classes_file else []), *_ZIPS[task.name]]
        files = tuple(File(f'{_BLOB}/{task.directory}/{name}', f'{task.directory}/{name}') for name in names)
        yield Data(f'elevater/{task.name}', f'{task.name} of ELEVATER', ELEVATER.root, files, _TOOLKIT,
                   needs=tuple(f'{task.directory}/{name}' for name in names))


def _texts() -> Iterator[Data]:
    prompts = 'elevater/prompts.py'
    yield Data('elevater-prompts', "ELEVATER's class names and prompt templates", '~',
               (File(f'{_KNOWLEDGE}/datasets/prompts.py', prompts), ), _TOOLKIT, needs=(prompts, ))
    found = []
    for name in ELEVATER.tasks:
        found += [('external', f'{name}_knowledge.tsv'), ('gpt3', f'GPT3_{name}.tsv')]
    files = tuple(File(f'{_KNOWLEDGE}/resources/knowledge/{kind}/{file}', f'elevater/knowledge/{file}')
                  for kind, file in found)
    yield Data('elevater-knowledge', 'WordNet, Wiktionary and GPT-3 texts about the classes of ELEVATER', '~', files,
               _TOOLKIT, needs=tuple(f.target for f in files))


def _fgvc() -> Iterator[Data]:
    caltech, vgg, dogs = ('https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz',
                          'https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz',
                          'http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar')
    rows: Dict[str, Tuple[Tuple[File, ...], str, Tuple[str, ...], str]] = {
        'CUB': ((File(caltech, 'CUB_200_2011.tgz', ''), ), 'https://data.caltech.edu/records/65de6-vp158',
                ('move CUB_200_2011/images into {root}/CUB/ (or keep the folder CUB_200_2011 and put the lists there)',
                 ), 'CUB*/images'),
        'nabirds': ((), 'https://dl.allaboutbirds.org/nabirds', (
            'ask for the data set at https://dl.allaboutbirds.org/nabirds (a form) and unpack it into {root}/nabirds/',
        ), 'nabirds/images'),
        'OxfordFlowers': ((File(vgg, 'OxfordFlowers/102flowers.tgz', 'OxfordFlowers'), ),
                          'https://www.robots.ox.ac.uk/~vgg/data/flowers/102/', (), 'OxfordFlowers/jpg'),
        'StanfordDogs': ((File(dogs, 'StanfordDogs/images.tar', 'StanfordDogs'), ),
                         'http://vision.stanford.edu/aditya86/ImageNetDogs/', (), 'StanfordDogs/Images'),
        'StanfordCars': ((), 'https://ai.stanford.edu/~jkrause/cars/car_dataset.html', (
            'the official page no longer serves the images: put cars_train/ and cars_test/ of a copy into '
            '{root}/StanfordCars/', ), 'StanfordCars/cars_train'),
    }
    for name, (files, page, steps, images) in rows.items():
        lists = tuple(f'{name}*/{split}.json' for split in ('train', 'val', 'test'))
        take = f"take the folder of {name} from VPT's lists at {_SPLITS} and put train.json, val.json and test.json " \
               f'into {{root}}/{name}/'
        yield Data(f'fgvc/{name}', f'{name} of FGVC', FGVC.root, files, page, (*steps, take), (images, *lists))


def _videos() -> Iterator[Data]:
    brown, crcv = 'http://serre-lab.clps.brown.edu/wp-content/uploads/2013/10', 'https://www.crcv.ucf.edu/data/UCF101'
    unrar = 'unpack it: unrar x {root}/'
    yield Data('hmdb51', 'HMDB51', 'data/hmdb51',
               (File(f'{brown}/hmdb51_org.rar', 'hmdb51_org.rar'), File(f'{brown}/test_train_splits.rar',
                                                                        'test_train_splits.rar')),
               'https://serre.lab.brown.edu/hmdb51.html',
               (unrar + 'hmdb51_org.rar, each .rar inside into {root}/hmdb51_org/, and test_train_splits.rar into '
                '{root}', 'python tools/prepare_hmdb51.py {root}'),
               ('hmdb51_org/*/*.avi', 'testTrainMulti_7030_splits/*.txt', 'split1/train.csv'))
    yield Data('ucf101', 'UCF101', 'data/ucf101',
               (File(f'{crcv}/UCF101.rar', 'UCF101.rar'),
                File(f'{crcv}/UCF101TrainTestSplits-RecognitionTask.zip', 'UCF101TrainTestSplits-RecognitionTask.zip',
                     '')), 'https://www.crcv.ucf.edu/data/UCF101.php',
               (unrar + 'UCF101.rar into {root}', 'python tools/prepare_ucf101.py {root}'),
               ('UCF-101/*/*.avi', 'ucfTrainTestlist/trainlist01.txt', 'split1/train.csv'))
    yield Data('ssv2', 'Something-Something V2', 'data/ssv2', (), 'https://www.qualcomm.com/developer/software/'
               'something-something-v-2-dataset',
               ('register at the page (a form), download the parts of the archive and the labels, and unpack both '
                'below {root}', 'python tools/prepare_ssv2.py {root}'),
               ('20bn-something-something-v2/*.webm', 'train.csv'))
    yield Data('k400', 'Kinetics-400', 'data/k400',
               (File(f'{_K400}/train/k400_train_path.txt', 'k400_train_path.txt'),
                File(f'{_K400}/val/k400_val_path.txt', 'k400_val_path.txt'),
                File(f'{_K400}/annotations/train.csv', 'annotations/train.csv'),
                File(f'{_K400}/annotations/val.csv', 'annotations/val.csv')),
               'https://github.com/cvdfoundation/kinetics-dataset',
               ('download the archives that the two lists name (about 450 GB) and unpack them into {root}/train and '
                '{root}/val, for example: wget -c -i {root}/k400_train_path.txt',
                'python tools/prepare_k400.py {root}'), ('train/*', 'val/*', 'train.csv'))


_ALL: List[Data] = [
    Data('vtab', 'VTAB-1k, all 19 tasks as images with lists', VTAB.root, (File(_VTAB_ZIP, 'vtab-1k.zip', ''), ),
         'https://github.com/luogen1996/RepAdapter', needs=tuple(f'{task}/*.txt' for task in VTAB.tasks)),
    *_fgvc(), *_elevater(), *_texts(), *_videos()
]
DATA: Dict[str, Data] = {data.name: data for data in _ALL}


def missing(data: Data, root: Path) -> List[str]:
    """Paths and patterns of ``data.needs`` that match nothing below ``root``."""
    return [need for need in data.needs if next(root.glob(need), None) is None]


def unpack(archive: Path, folder: Path) -> None:
    """Members of a zip or tar file into a folder; nothing can lead out of it, and only files and folders are made.

    An archive whose members all lie in one folder of the target's own name is unpacked without that folder.

    Raises:
        ValueError: If it is no archive that can be read, or a member leads out of the folder.
    """
    with open_regular(archive):  # no pipe that would be waited for
        pass
    folder.mkdir(parents=True, exist_ok=True)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                if stat.S_ISLNK(info.external_attr >> 16):  # the upper half holds what Unix knows of a file
                    raise ValueError(f'{archive} has a link {info.filename!r}: not unpacked')
                _inside(archive, folder, info.filename)
            tops = {name.split('/', 1)[0] for name in bundle.namelist()}
            bundle.extractall(folder.parent if tops == {folder.name} else folder)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            tops = {name.split('/', 1)[0] for name in tar.getnames()}
            try:
                tar.extractall(folder.parent if tops == {folder.name} else folder, filter='data')
            except tarfile.FilterError as error:
                raise ValueError(f'{archive}: {error}: not unpacked') from None
    else:
        raise ValueError(f'{archive} is no zip or tar archive: remove it and run again')


def _inside(archive: Path, folder: Path, name: str) -> None:
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f'{archive} has a member {name!r} that leads out of its folder: not unpacked')
