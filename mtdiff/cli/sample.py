"""mtdiff sample: draw from a trained model, with some modalities given if you like."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import PIL.Image
import torch
import tyro

from mtdiff.cli.common import DEVICE, data_of, save_picture, trained_model, usable_device
from mtdiff.cli.own import Imports
from mtdiff.datasets.decoding import decoded
from mtdiff.datasets.shapes import VOCABULARY, read_caption
from mtdiff.experiments import EXPERIMENTS, matched
from mtdiff.files import to_json, write_atomic
from mtdiff.modalities import Caption, Image, Label, Mask
from mtdiff.model import MTDiffusion
from mtdiff.sampling import RULES, SAMPLERS, sample


@dataclass
class Sample:
    """Draw from a trained model into a picture, with some modalities given if you like."""

    LIMITS: ClassVar = {"n": (1, 1024), "repeats": (1, 1000), "guidance": (-1000, 1000), "seed": (0, 2**32)}

    # A folder that train wrote, or the name of a shipped model.
    model: Annotated[str, tyro.conf.Positional] = "image-label/digits"
    n: int = 20  # How many examples.
    # Known modalities as NAME=VALUE: a class (label=3), words (caption="grey small red circle"), a picture file
    # (source=night.png), an example of the held-out data (source=test:7).
    given: tuple[str, ...] = ()
    rule: Literal[RULES] | None = None  # How given values act; default: what the model's card says.
    sampler: Literal[tuple(SAMPLERS)] | None = None  # The solver of the reverse chain; default: what the model's card says.
    steps: int = 50  # Intervals of the reverse chain.
    repeats: int = 1  # How often each interval is taken, with noise put back in between.
    guidance: float = 1.0  # Guidance scale of the rules bayes and conditioned; 1 is the plain conditional.
    data: str | None = None  # What test:7 is an example of; default: what the model was trained on.
    seed: int = 0  # Seed of the noise.
    # What to write: one picture of all (.png, .pdf, .svg), the values as arrays (.npz), or, for a path without an ending, a
    # folder with a picture file of each and what else was drawn in metadata.jsonl.
    out: Path = Path("samples.png")
    device: str = DEVICE  # Where to sample: cpu or cuda.
    imports: Imports = ()

    @property
    def FILES(self) -> tuple[str, ...]:
        """Which places to write are a file."""
        return ("out",) if self.out.suffix else ()

    def run(self) -> None:
        """Draw, write it, and say what is in it."""
        model = trained_model(self.model, usable_device(self.device), self.imports)
        pairs = dict(text.partition("=")[::2] for text in self.given)
        if len(pairs) < len(self.given):
            raise ValueError(f"--given {' '.join(self.given)}: one value for each modality")
        given = {}
        for name, value in pairs.items():
            try:
                given[name] = self._given(model, name, value).to(self.device)
            except ValueError as error:
                raise ValueError(f"--given {name}={value}: {error}") from None
        generator = torch.Generator(self.device).manual_seed(self.seed)
        drawn = sample(
            model, self.n, given=given, rule=self.rule, sampler=self.sampler, steps=self.steps, repeats=self.repeats,
            guidance=self.guidance, generator=generator,
        )  # fmt: skip
        said = in_words(model, drawn)
        if self.out.suffix == ".npz":
            data = io.BytesIO()
            np.savez_compressed(data, **{name: value.cpu().numpy() for name, value in drawn.items()})
            write_atomic(self.out, data.getvalue())
        elif self.out.suffix:
            save_picture(model, drawn, self.out)
        else:
            write_folder(drawn, said, self.out)
        for name, texts in said.items():
            if isinstance(model.modalities[name], Label):
                print(f"{name}s: {', '.join(texts)}")
            else:
                print(f"{name}s:", *texts, sep="\n  ")
        what = {".npz": "values", "": "pictures"}.get(self.out.suffix, "picture")
        print(f"{what}: {self.out}")

    def _given(self, model: MTDiffusion, name: str, value: str) -> torch.Tensor:
        """A class by its name or number, a caption in words, a picture file, or a held-out example."""
        if not value:
            raise ValueError("expected NAME=VALUE")
        if name not in model.modalities:
            raise ValueError(f"unknown modality {name!r}; this model has {list(model.modalities)}")
        modality = model.modalities[name]
        if value.startswith("test:"):
            return _held_out(model, name, value[5:], self.data)
        if isinstance(modality, Label):
            if modality.names.count(value) != 1:
                problem = "is more than one of" if value in modality.names else "is not one of"
                raise ValueError(f"{value!r} {problem} {modality.names}")
            return torch.tensor([modality.names.index(value)])
        if isinstance(modality, Caption):
            of_shapes = tuple(modality.vocabulary) == VOCABULARY
            return modality.tokens([read_caption(value, self.seed + k) for k in range(self.n)] if of_shapes else value)
        if isinstance(modality, Image | Mask):
            return read_picture(modality, value)
        raise ValueError(f"only classes, captions, pictures and masks can be given, or an example as {name}=test:K")


def in_words(model: MTDiffusion, drawn: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Names of drawn labels, and drawn captions as text."""
    kinds = model.modalities
    labels = {n: [kinds[n].names[k] for k in drawn[n].tolist()] for n in kinds if isinstance(kinds[n], Label)}
    return labels | {name: kinds[name].text(drawn[name]) for name in kinds if isinstance(kinds[name], Caption)}


def write_folder(drawn: Mapping[str, torch.Tensor], said: Mapping[str, Sequence[str]], folder: Path) -> None:
    """A PNG file of each picture that was drawn, of several kinds in a folder each, as `mtdiff train --data` reads them.

    metadata.jsonl, beside the first kind, says of each file_name what else was drawn in words.
    """
    if any(value.ndim == 3 for value in drawn.values()):
        from mtdiff.plots import coloured

        drawn = {name: coloured(value) if value.ndim == 3 else value for name, value in drawn.items()}
    pictures = {name: value for name, value in drawn.items() if value.ndim == 4}
    if not pictures:
        raise ValueError(f"--out {folder}: no picture was drawn; write .npz")
    places = {name: folder / ("images" if name == "image" else name) if len(pictures) > 1 else folder for name in pictures}
    for name, value in pictures.items():
        low = 0.0 if value.shape[1] == 1 and set(value.unique().tolist()) <= {0.0, 1.0} else -1.0  # of a mask, or an image
        pixels = (value.float().cpu().clamp(low, 1) - low) / (1 - low) * 255
        pixels = pixels.round().byte().movedim(1, -1).squeeze(-1).numpy()
        for k, each in enumerate(pixels):
            data = io.BytesIO()
            PIL.Image.fromarray(each).save(data, "PNG")
            write_atomic(places[name] / f"{k:04}.png", data.getvalue())
    rows = [{"file_name": f"{k:04}.png", **{n: texts[k] for n, texts in said.items()}} for k in range(len(pixels))]
    write_atomic(next(iter(places.values())) / "metadata.jsonl", "".join(f"{to_json(row)}\n" for row in rows).encode())


def _held_out(model: MTDiffusion, name: str, index: str, data: str | None) -> torch.Tensor:
    """One value of the held-out set that the model's experiment is judged on."""
    experiment = EXPERIMENTS.get(model.card.get("experiment"))
    if experiment is None:
        raise ValueError("the model's card names no experiment whose held-out data could be used")
    held_out = matched(model, experiment.on(data_of(model, experiment, data))("test"), elsewhere=True)
    if name not in held_out.values:
        raise ValueError(f"the held-out data have {list(held_out.values)}")
    if not index.isdecimal() or int(index) >= len(held_out):
        raise ValueError(f"expected an example in test:0..test:{len(held_out) - 1}")
    return held_out[torch.tensor([int(index)])][name]


def read_picture(modality: Image | Mask, path: str) -> torch.Tensor:
    """A picture file, read as `prepare` reads it, as one image in [-1, 1], or as a mask of zeros and ones (white is 1)."""
    channels, height, width = (1, *modality.size) if isinstance(modality, Mask) else modality.shape
    if channels not in (1, 3):
        raise ValueError(f"a picture file has 1 or 3 channels, {modality.name!r} has {channels}")
    try:
        with decoded(path) as (picture, _):
            picture = picture.convert("L") if channels == 1 else picture
    except Exception as error:  # a broken file makes decoders raise anything
        raise ValueError(f"{path} cannot be read as a picture ({error})") from None
    if picture.size != (width, height):
        raise ValueError(f"the picture is {picture.width}x{picture.height}, expected {width}x{height}")
    value = torch.from_numpy(np.array(picture)).float().reshape(1, height, width, channels).movedim(-1, 1)
    return (value > 127).float() if isinstance(modality, Mask) else value / 127.5 - 1
