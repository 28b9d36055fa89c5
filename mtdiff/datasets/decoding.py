"""The one way in which picture files are read: of known formats and bounded size, upright, as eight-bit RGB."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP")
"""What is decoded, whatever a file is called; nothing that runs another program, as Pillow does for EPS."""
PIXELS, LARGE = 2**26, 2**24
"""Pixels of the largest picture that is decoded, about 1 GiB on the way to RGB; above the second, one picture at a time."""
ORIENTATION = 0x0112
TURNS = dict(zip(range(2, 9), map(PIL.Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), strict=True))
"""EXIF orientation -> what makes a picture upright."""
_alone = threading.Lock()


@contextlib.contextmanager
def decoded(path: str | Path) -> Iterator[tuple[PIL.Image.Image, int]]:
    """A picture file as `rgb` makes it, and the EXIF orientation of what is stored; hold it no longer than needed.

    OSError says that it is no regular file, of another format, or damaged; ValueError that it has more than `PIXELS` pixels,
    which are not decoded, or some that have no eight-bit form.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise OSError(f"{path} is not a regular file")
    with PIL.Image.open(path, formats=FORMATS) as file:
        pixels = file.width * file.height
        if pixels > PIXELS:
            raise ValueError(f"{file.width}x{file.height} is more than {PIXELS:,} pixels")
        with _alone if pixels > LARGE else contextlib.nullcontext():
            yield rgb(file), orientation(file)


def rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Eight-bit RGB, upright: what is transparent is white, 16-bit grey is scaled, grey, palettes and CMYK are converted.

    ValueError for numbers outside 0..65535, or with fractions.
    """
    picture.load()  # some formats say only after their pixels how they are turned
    turn, clear = TURNS.get(orientation(picture)), picture.info.get("transparency")
    if picture.mode.startswith("I"):
        deep = np.asarray(picture).astype(np.int32)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"pixels in {deep.min()}..{deep.max()}, expected 0..65535")
        white = deep == (-1 if clear is None else clear)
        plain = PIL.Image.fromarray(np.where(white, 255, (deep + 128) // 257).astype(np.uint8)).convert("RGB")
    elif picture.mode == "F":
        raise ValueError("pixels with fractions have no eight-bit form")
    elif picture.mode in ("RGBA", "LA", "PA") or clear is not None:
        if isinstance(clear, tuple) and max(clear) > 255:  # of 16-bit colours, of which Pillow keeps the upper bytes
            picture.info["transparency"] = tuple(value >> 8 for value in clear)
        picture = picture.convert("RGBA")
        plain = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    else:
        plain = picture.convert("RGB")
    return plain if turn is None else plain.transpose(turn)


def orientation(picture: PIL.Image.Image) -> int:
    """The EXIF orientation, 1..8; 1, as stored, where none can be read."""
    try:
        found = picture.getexif().get(ORIENTATION)
    except Exception:  # damaged EXIF raises anything, and the pixels may be whole
        return 1
    return found if found in TURNS else 1


def upright(box: Sequence[float], turn: int, size: tuple[int, int]) -> np.ndarray:
    """A box (left, top, right, bottom) of stored pixels in the upright picture of (width, height), which was turned."""
    x, y = np.array(box[::2], float), np.array(box[1::2], float)
    width, height = size[::-1] if turn >= 5 else size
    if turn in (2, 3, 7, 8):
        x = width - x[::-1]
    if turn in (3, 4, 6, 7):
        y = height - y[::-1]
    x, y = (y, x) if turn >= 5 else (x, y)
    return np.array([x[0], y[0], x[1], y[1]])
