"""Decode once: images of one size, as bytes that can be mapped into memory, with labels, boxes and a hash."""

import errno
import hashlib
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
from tqdm import tqdm

from mtdiff.datasets.imagenet.layouts import SPLITS, Listing, find
from mtdiff.files import write_atomic
from mtdiff.reading import check_types, naming, read_json

IMAGES, LABELS, BOXES, META = "images.bin", "labels.npy", "boxes.npy", "meta.json"
FORMAT = 1
TYPES = {"format": int, "count": int, "size": int, "sha256": str, "skipped": list[list[str]]}
TYPES |= {"names": list[str], "classes": list[str]}
"""What is read of a split's meta."""
DAMAGED = "is damaged: delete its folder and prepare it again"
CHUNK = 512
"""Files that are decoded before their pixels are written."""


def prepare(
    root: str | Path,
    out: str | Path,
    size: int = 64,
    classes: Sequence[str] | None = None,
    splits: Sequence[str] = SPLITS,
    limit: int | None = None,
    progress: bool = True,
) -> dict[str, dict]:
    """Pack images at one size: the largest centred square of each, averaged over areas (a box filter), in RGB.

    Each split becomes a folder with images.bin (N, 3, size, size) uint8, labels.npy (N,) int64, boxes.npy (N, 4) float32
    (left, top, right, bottom in [0, 1] of the packed image; NaN where unknown or outside) and meta.json. An image that
    cannot be read is left out and listed there. A split appears only when it is complete. Smaller images are enlarged by
    a bicubic filter and counted.

    Args:
        root: the folder of images, see `find`.
        out: the folder to write.
        size: height and width.
        classes: as in `find`.
        splits: which of "train" and "val".
        limit: at most so many images of each class; None is all.
        progress: show a progress bar.

    Returns:
        {split: its meta}: "count", "classes", "names", "size", "sha256" of all arrays, "skipped" [[file, why], ...],
        "enlarged", and what it was made from.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another layout, unknown classes, a class of which no image can be read, a size below 8, or an `out`
            that holds something else.
        OSError: the disk is full; nothing is left behind.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8, got {size}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    listings = {split: _first(find(root, split, classes), limit) for split in splits}
    return {
        split: _pack(listing, Path(out) / split, Path(root), size, limit, progress) for split, listing in listings.items()
    }


def _first(listing: Listing, limit: int | None) -> Listing:
    """The first few images of each class."""
    if limit is None:
        return listing
    keep = np.concatenate([np.flatnonzero(listing.label == k)[:limit] for k in range(len(listing.wnids))])
    files = [listing.files[i] for i in keep]
    return Listing(listing.layout, files, listing.label[keep], listing.boxes[keep], listing.wnids, listing.names)


def _pack(listing: Listing, folder: Path, root: Path, size: int, limit: int | None, progress: bool) -> dict:
    """One split, in a folder beside its own that takes its name in the end."""
    asked = {"size": size, "classes": list(listing.wnids), "limit": limit, "files": len(listing.files)}
    if folder.exists():
        return _already(folder, asked)
    need, free = 3 * size * size * len(listing.files), shutil.disk_usage(_existing(folder)).free
    if need > free:
        raise OSError(errno.ENOSPC, f"{folder} needs {need / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        meta = {"format": FORMAT, **asked, **_write(listing, partial, root, size, progress)}
        write_atomic(partial / META, (json.dumps(meta, indent=1) + "\n").encode())
        partial.rename(folder)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(errno.ENOSPC, f"the disk is full: {folder} needs {need / 2**20:.0f} MiB; nothing was kept") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return meta


def _already(folder: Path, asked: dict) -> dict:
    """The meta of a split that was packed before, if it is the one asked for."""
    meta = read_meta(folder)
    different = [
        f"{key}: {meta.get(key)} there, {value} asked for" for key, value in asked.items() if meta.get(key) != value
    ]
    if different:
        raise ValueError(f"{folder} holds another set ({'; '.join(different)[:300]}): use another folder, or delete it")
    return meta


def read_meta(folder: Path) -> dict:
    """What `prepare` wrote about a split.

    Raises:
        FileNotFoundError: the folder holds no packed images.
        ValueError: the file is damaged or of another format.
    """
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


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _write(listing: Listing, folder: Path, root: Path, size: int, progress: bool) -> dict:
    """All arrays of a split; returns what its meta says of them."""
    digest, kept, boxes, skipped, enlarged = hashlib.sha256(), [], [], [], 0
    bar = tqdm(total=len(listing.files), disable=not progress, unit="image", desc=folder.name.strip(".").split(".")[0])
    with bar, ThreadPoolExecutor() as pool, (folder / IMAGES).open("wb") as file:
        for start in range(0, len(listing.files), CHUNK):
            part = range(start, min(start + CHUNK, len(listing.files)))
            for i, read in zip(part, pool.map(lambda i: _read(listing.files[i], size), part), strict=True):
                if isinstance(read, str):
                    skipped.append([listing.files[i].relative_to(root).as_posix(), read])
                    continue
                pixels, (left, top, side) = read
                file.write(pixels)
                digest.update(pixels)
                kept.append(i)
                boxes.append(_clipped((listing.boxes[i] - np.array([left, top, left, top])) / side))
                enlarged += side < size
            bar.update(len(part))
    label, boxes = listing.label[kept], np.array(boxes, np.float32).reshape(-1, 4)
    counts = np.bincount(label, minlength=len(listing.wnids))
    if not counts.all():
        raise ValueError(
            f"no image of class {listing.wnids[int(counts.argmin())]} can be read; the first problem: {skipped[0]}"
        )
    np.save(folder / LABELS, label)
    np.save(folder / BOXES, boxes)
    digest.update(label.tobytes() + boxes.tobytes())
    return {
        "count": len(kept),
        "names": list(listing.names),
        "layout": listing.layout,
        "filter": "centred square, box filter",
        "enlarged": int(enlarged),
        "boxes": int(np.isfinite(boxes).all(1).sum()),
        "skipped": skipped,
        "sha256": digest.hexdigest(),
    }


def _read(path: Path, size: int) -> tuple[bytes, tuple[float, float, float]] | str:
    """The packed pixels of a file, and the square (left, top, side) they are from; or why it cannot be read."""
    try:
        with PIL.Image.open(path) as file:
            picture = _rgb(file)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:  # Pillow raises any of these
        return f"{type(error).__name__}: {error}"[:200]
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    kernel = PIL.Image.Resampling.BOX if side >= size else PIL.Image.Resampling.BICUBIC
    small = picture.resize((size, size), kernel, box=(left, top, left + side, top + side))
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1)).tobytes(), (left, top, side)


def _rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Eight-bit RGB: transparent images on white, 16-bit grey scaled, grey and CMYK converted."""
    if picture.mode.startswith("I"):
        return PIL.Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", picture.size, "white")
        return PIL.Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _clipped(box: np.ndarray) -> np.ndarray:
    """A box within the square, or NaN where nothing of it is left."""
    box = box.clip(0, 1)
    left, top, right, bottom = box
    return box if right > left and bottom > top else np.full(4, np.nan)
