"""mtdiff data: fetch real images and pack them for training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from mtdiff.cli.common import tell_pack
from mtdiff.datasets.imagenet import ARCHIVES, get, prepare


@dataclass
class Get:
    """Fetch and unpack an archive; a broken transfer goes on, and what is there already is left alone."""

    # What to fetch: Tiny-ImageNet (237 MiB), or Imagenette at 160 pixels (94 MiB), 320 (326 MiB) or full size (1.5 GiB).
    name: Annotated[Literal[tuple(ARCHIVES)], tyro.conf.Positional]
    out: Path = Path("data/raw")  # Folder to unpack it in.

    def run(self) -> None:
        """Fetch it and say what to do next."""
        folder = get(self.name, self.out)
        pack = f"mtdiff data prepare {folder} --size 64 --out data/prepared/{self.name}64"
        print(f"the images are in {folder}", f"pack them:  {pack}", sep="\n")


@dataclass
class Prepare:
    """Pack images at one size for training: your own, or as the archive of Tiny-ImageNet, Imagenette or ILSVRC unpacks."""

    LIMITS: ClassVar = {"size": (8, 4096)}

    root: Annotated[Path, tyro.conf.Positional]  # The folder with the images, or with train/ and val/.
    out: Path  # Folder to write.
    size: int = 64  # Height and width: the centred square of each image, averaged over areas.
    classes: tuple[str, ...] = ()  # WordNet ids or names to keep, in the order of their labels; default: all.
    limit: int | None = None  # At most so many images of each class.

    def run(self) -> None:
        """Pack both splits and say what is in them."""
        prepare(self.root, self.out, self.size, self.classes or None, limit=self.limit)
        tell_pack(self.out)
        print(f"train on them:  mtdiff train imagenet --data {self.out}")


@dataclass
class Data:
    """Fetch real images and pack them for training."""

    action: tyro.conf.OmitSubcommandPrefixes[Get | Prepare]
