"""Decode once: images of one size, as bytes that can be mapped into memory, with labels, boxes and a hash."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from tqdm import tqdm

from mtdiff.datasets.base import ahead
from mtdiff.datasets.decoding import decoded, upright
from mtdiff.datasets.imagenet.folders import find
from mtdiff.datasets.imagenet.layouts import SPLITS, Listing
from mtdiff.files import to_json, write_atomic
from mtdiff.reading import check_types, naming, read_json

IMAGES, LABELS, BOXES, CAPTIONS, META = "images.bin", "labels.npy", "boxes.npy", "captions.txt", "meta.json"
FORMAT = 1
TYPES = {"format": int, "count": int, "size": int, "sha256": str, "skipped": list[list[str]], "names": list[str]}
TYPES |= {"layout": str | None, "boxes": int | None, "enlarged": int | None, "captions": bool | None}
TYPES |= {"beside": list[str] | None, "left_out": list[list[str]] | None}
"""What is read of a split's meta."""
DAMAGED = "is damaged: delete its folder and prepare it again"
WAITING, WORKERS = 256, 8
"""Files that are decoded before their pixels are written, and how many at a time, at most."""
FOLDER = "MTDIFF_DATA"
"""The variable that names the folder of packed sets, instead of data/prepared."""


def packs() -> Path:
    """The folder of packed sets."""
    return Path(os.environ.get(FOLDER, "data/prepared"))


def pack(root: str | Path, size: int | None = None, progress: bool = True) -> Path:
    """A pack of a folder of pictures, at 32 unless a size is given, made by `prepare` among the `packs`; a pack, as it is.

    It is called by what the folder holds, so that a changed one is packed anew. Errors are those of `prepare`, and
    ValueError for a pack of another size.
    """
    if (Path(root) / "train" / META).is_file():
        found = read_meta(Path(root) / "train")["size"]
        if size not in (None, found):
            raise ValueError(f"{root} is packed at size {found}, not {size}")
        return Path(root)
    size, listings = size or 32, {split: find(root, split) for split in SPLITS}
    held = [str(Path(root).resolve()), *(_state(listing, Path(root)) for listing in listings.values())]
    folder = packs() / f"{Path(root).resolve().name}-{size}-{hashlib.sha256(repr(held).encode()).hexdigest()[:8]}"
    for split, listing in listings.items():
        _pack(listing, folder / split, Path(root), size, None, progress)
    return folder


def prepare(
    root: str | Path, out: str | Path, size: int = 64, classes: Sequence[str] | None = None,
    splits: Sequence[str] = SPLITS, limit: int | None = None, progress: bool = True,
) -> dict[str, dict]:  # fmt: skip
    """Pack images at one size: the largest centred square of each, upright, averaged over areas (a box filter), in RGB.

    Each split becomes a folder with images.bin (N, 3, size, size) uint8, labels.npy (N,) int64, boxes.npy (N, 4) float32
    (left, top, right, bottom in [0, 1] of the packed image; NaN where unknown or outside) and meta.json; with captions.txt,
    a line for each, and NAME.bin, pictures beside the images as these, where there are such. An image that cannot be read
    is skipped and listed there, as is what `find` leaves out. A split appears only when it is complete, and what was packed
    before is returned only if nothing has changed: names, sizes, times, labels and boxes of the files, the folder, and which
    of them can be read. Smaller images are enlarged by a bicubic filter and counted. `root`, `classes` and `limit` are those
    of `find`, as are further errors.

    Returns:
        {split: its meta}: "count", "classes", "names", "size", "sha256" of all arrays, "skipped" and "left_out", both
        [[file, why], ...], "enlarged", and what it was made from.

    Raises:
        ValueError: a class of which no image can be read, pictures of one name and different sizes, masks that are black, or
            an `out` that holds something else or was made of other files.
        OSError: the disk is full; nothing is left behind.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    listings = {Path(out) / split: find(root, split, classes, limit) for split in splits}
    return {folder.name: _pack(listing, folder, Path(root), size, limit, progress) for folder, listing in listings.items()}


def _pack(listing: Listing, folder: Path, root: Path, size: int, limit: int | None, progress: bool) -> dict:
    """One split, in a folder beside its own that takes its name in the end."""
    if size < 8:
        raise ValueError(f"size must be at least 8, got {size}")
    asked = {"size": size, "classes": list(listing.wnids), "limit": limit, "files": len(listing.files)}
    asked |= {"root": str(root.resolve()), "state": _state(listing, root)}
    if folder.exists():
        return _already(folder, asked, listing, root)
    there = next(path for path in folder.absolute().parents if path.is_dir())
    each = 3 * size * size * (1 + len(listing.beside))
    need, free = each * len(listing.files) / 2**20, shutil.disk_usage(there).free / 2**20
    if need > free:
        raise OSError(errno.ENOSPC, f"{folder} needs {need:.0f} MiB, and {free:.0f} MiB are free")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        meta = {"format": FORMAT, **asked, **_write(listing, partial, root, size, progress)}
        write_atomic(partial / META, (to_json(meta, indent=1) + "\n").encode())
        partial.rename(folder)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(errno.ENOSPC, f"the disk is full: {folder} needs {need:.0f} MiB; nothing was kept") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return meta


def _state(listing: Listing, root: Path) -> str:
    """SHA-256 over what a pack is made of: names of classes; path, size and time, label, box and caption of each file."""
    digest = hashlib.sha256(repr((listing.names, *listing.captions) if listing.captions else listing.names).encode())
    files = list(zip(listing.files, listing.label.tolist(), listing.boxes.tolist(), strict=True))
    for path, *said in [*files, *((path, name) for name, paths in listing.beside.items() for path in paths)]:
        stat = path.stat()
        digest.update(repr((_named(path, root), stat.st_size, stat.st_mtime_ns, *said)).encode())
    return digest.hexdigest()


def _already(folder: Path, asked: dict, listing: Listing, root: Path) -> dict:
    """The meta of a split that was packed before, if it is the one asked for and still what it was made from."""
    meta = read_meta(folder)
    different = [
        "names, sizes, times, labels or boxes of the files have changed" if key == "state"
        else f"{key}: {meta.get(key)} there, {value} asked for"
        for key, value in asked.items() if meta.get(key) != value
    ]  # fmt: skip
    skipped = {name for name, _ in meta["skipped"]}
    again = [paths for paths in _together(listing) if _named(paths[0], root) in skipped]
    mended = [_named(paths[0], root) for paths in again if not isinstance(_read(paths, meta["size"]), str)]
    if mended:
        different.append(f"{len(mended)} files that could not be read now can, such as {mended[0]}")
    if different:
        raise ValueError(f"{folder} holds another set ({'; '.join(different)[:300]}): use another folder, or delete it")
    return meta


def read_meta(folder: Path) -> dict:
    """What `prepare` wrote about a split; an error names the folder that holds none, or the file that is damaged."""
    if not (folder / META).is_file():
        raise FileNotFoundError(f"{folder} holds no prepared images: see mtdiff data prepare --help")
    with naming(folder / META, DAMAGED):
        meta = read_json(folder / META, DAMAGED)
        check_types({name: meta.get(name) for name in TYPES}, TYPES, "the set")
        if meta["format"] != FORMAT:
            raise ValueError(f"it has format {meta['format']}, expected {FORMAT}")
        if meta["count"] < 1 or meta["size"] < 1:
            raise ValueError(f"{meta['count']} images of size {meta['size']}")
    return meta


def _named(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _together(listing: Listing) -> list[tuple[Path, ...]]:
    """Each image with the pictures beside it."""
    return list(zip(listing.files, *listing.beside.values(), strict=True))


def _write(listing: Listing, folder: Path, root: Path, size: int, progress: bool) -> dict:
    """All arrays of a split; returns what its meta says of them."""
    digest, kept, boxes, skipped, enlarged, brightest = hashlib.sha256(), [], [], [], 0, 0
    every, workers = range(len(listing.files)), min(WORKERS, os.cpu_count() or 1)
    pictures, files = _together(listing), [IMAGES, *(f"{name}.bin" for name in listing.beside)]
    results = ahead(lambda i: _read(pictures[i], size, listing.boxes[i]), every, WAITING, workers)
    split = folder.name.strip(".").split(".")[0]
    bar = tqdm(every, disable=not progress, unit="image", desc=split)
    with contextlib.closing(results), contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name in files]
        for i, read in zip(bar, results, strict=True):
            if isinstance(read, str):
                skipped.append([_named(listing.files[i], root), read])
                continue
            pixels, box, side = read
            for file, name, each in zip(files, ("image", *listing.beside), pixels, strict=True):
                file.write(each)
                digest.update(each)
                brightest = max(brightest, *each) if name == "mask" else brightest
            kept.append(i)
            boxes.append(box)
            enlarged += side < size
    label, boxes = listing.label[kept], np.array(boxes, np.float32).reshape(-1, 4)
    counts = np.bincount(label, minlength=len(listing.wnids))
    if not counts.all():
        wnid = listing.wnids[int(counts.argmin())]
        raise ValueError(f"no image of class {wnid} can be read in {split}; the first problem: {skipped[0]}")
    if "mask" in listing.beside and brightest < 128:
        raise ValueError(f"the brightest pixel of all masks is {brightest} of 255: expected is white where something is")
    np.save(folder / LABELS, label)
    np.save(folder / BOXES, boxes)
    digest.update(label.tobytes() + boxes.tobytes())
    if listing.captions:
        captions = "\n".join(listing.captions[i] for i in kept).encode()
        (folder / CAPTIONS).write_bytes(captions)
        digest.update(captions)
    return {
        "count": len(kept),
        "names": list(listing.names),
        "layout": listing.layout,
        "filter": "centred square, box filter",
        "enlarged": int(enlarged),
        "boxes": int(np.isfinite(boxes).all(1).sum()),
        "captions": bool(listing.captions),
        "beside": list(listing.beside),
        "skipped": skipped,
        "left_out": [[_named(path, root), why] for path, why in listing.left_out],
        "sha256": digest.hexdigest(),
    }


def _read(
    paths: Sequence[Path], size: int, box: Sequence[float] = (np.nan,) * 4
) -> tuple[list[bytes], np.ndarray, int] | str:
    """The packed pixels of pictures of one name, the first one's box in them, and the side of the square they are from.

    Or why one cannot be read; ValueError where their sizes differ.
    """
    pixels, sizes = [], {}
    try:
        for path in paths:
            with decoded(path) as (picture, turn):
                side, sizes[path] = min(picture.size), picture.size
                left, top = (picture.width - side) / 2, (picture.height - side) / 2
                kernel = PIL.Image.Resampling.BOX if side >= size else PIL.Image.Resampling.BICUBIC
                small = picture.resize((size, size), kernel, box=(left, top, left + side, top + side))
                if path == paths[0]:
                    box = ((upright(box, turn, picture.size) - (left, top, left, top)) / side).clip(0, 1)
            pixels.append(np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1)).tobytes())
    except Exception as error:  # a broken file makes decoders raise anything, and the others are packed
        return f"{type(error).__name__}: {error}"[:200]
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{path} is {width}x{height}" for path, (width, height) in sizes.items())
        raise ValueError(f"{text}: expected is one size of all pictures of one name")
    box = np.where((box[2:] > box[:2]).all(), box, np.nan)  # NaN where nothing of it is left
    return pixels, box, side
