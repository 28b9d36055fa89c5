"""Fetch the archives of Tiny-ImageNet and Imagenette: resumed, checked, and unpacked safely."""

import errno
import hashlib
import itertools
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from mtdiff.datasets.base import one_of

BLOCK, GROWTH = 2**20, 10
"""Bytes that are read at a time; how many times its own size, and a little, an archive may unpack to."""


@dataclass(frozen=True)
class Archive:
    """An archive on the web: its official address, the file's checksum, what it unpacks to, and its size for people."""

    url: str
    md5: str
    folder: str
    mebibytes: int


_STANFORD, _FASTAI = "http://cs231n.stanford.edu", "https://s3.amazonaws.com/fast-ai-imageclas"
_TINY = "tiny-imagenet-200"
ARCHIVES = {
    "tiny-imagenet": Archive(f"{_STANFORD}/{_TINY}.zip", "90528d7ca1a48142e341f4ef8d21d0de", _TINY, 237),
    "imagenette": Archive(f"{_FASTAI}/imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412", "imagenette2-160", 94),
    "imagenette-320": Archive(f"{_FASTAI}/imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3", "imagenette2-320", 326),
    "imagenette-full": Archive(f"{_FASTAI}/imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612", "imagenette2", 1488),
}
"""What can be fetched. Checksums: as in torchvision's `Imagenette`, and as published with loaders of Tiny-ImageNet."""


def get(name: str, folder: str | Path, archive: Archive | None = None, progress: bool = True) -> Path:
    """Fetch one of `ARCHIVES` or another one and unpack it to a folder; returned is the folder of images, for `prepare`.

    What is there already is not fetched again, and a broken transfer goes on. The archive itself is deleted in the end.

    Raises:
        ValueError: a checksum that does not fit (the file is deleted), or an archive that would write elsewhere or too much.
        ConnectionError: the address cannot be reached; what came so far is kept, and the same call goes on from there.
        RuntimeError: a Python whose `tarfile` cannot unpack safely.
    """
    if archive is None:
        one_of("data", name, ARCHIVES)
    archive, folder = archive or ARCHIVES[name], Path(folder)
    target = folder / archive.folder
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / PurePosixPath(archive.url).name
    if not file.is_file():
        _fetch(archive.url, file, progress)
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    if (found := digest.hexdigest()) != archive.md5:
        file.unlink()
        raise ValueError(f"{archive.url} has checksum {found}, expected {archive.md5}: it is damaged or another; deleted")
    _unpack(file, target)
    file.unlink()
    return target


def _fetch(url: str, file: Path, progress: bool) -> None:
    """A file of the web, by way of FILE.part, from where an earlier transfer broke off."""
    part = file.with_name(file.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            have = have if answer.status == 206 else 0
            length = int(answer.headers.get("Content-Length", 0))
            options = {"total": have + length or None, "initial": have, "unit": "B", "unit_scale": True}
            with tqdm(disable=not progress, desc=file.name, **options) as bar, part.open("ab" if have else "wb") as out:
                while block := answer.read(BLOCK):
                    bar.update(out.write(block))
            if length and part.stat().st_size != have + length:
                raise ConnectionError(f"the transfer broke off after {part.stat().st_size:,} bytes")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to fetch: the checksum decides
            raise ConnectionError(f"{url}: {error}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        kept = f"; {part} is kept, and the same command goes on from there" if part.is_file() else ""
        raise ConnectionError(f"{url} cannot be fetched ({error}){kept}") from None
    part.rename(file)


def _unpack(file: Path, target: Path) -> None:
    """The archive's own folder, in full or not at all; the standard library sees to it that no entry leads out of it."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    zipped = zipfile.is_zipfile(file)
    if not zipped and not hasattr(tarfile, "data_filter"):
        raise RuntimeError(f"Python unpacks safely from 3.10.12 and 3.11.4 on: take a newer one, or unpack {file} by hand")
    try:
        with zipfile.ZipFile(file) if zipped else tarfile.open(file) as archive:
            _fits((entry.file_size for entry in archive.infolist()) if zipped else (entry.size for entry in archive), file)
            archive.extractall(partial, **({} if zipped else {"filter": "data"}))
        inner = partial / target.name
        if not inner.is_dir():
            found = sorted(path.name for path in partial.glob("*"))
            raise ValueError(f"{file} was expected to hold the folder {target.name}, it holds {found[:5]}")
        inner.rename(target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{file} cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fits(sizes: Iterable[int], file: Path) -> None:
    """Refuse more than pictures can unpack to or the disk has room for."""
    most, free = GROWTH * file.stat().st_size + BLOCK * 64, shutil.disk_usage(file.parent).free
    for total in itertools.accumulate(max(size, 512) for size in sizes):
        if total > most:
            raise ValueError(f"{file} would unpack to more than {most:,} bytes, pictures do not: not unpacked")
        if total > free:
            raise OSError(errno.ENOSPC, f"{file} unpacks to more than the {free / 2**20:.0f} MiB that are free")
