"""A trained model for elsewhere: `predict` as an ONNX graph, and the tables that a sampler needs as JSON beside it."""

import contextlib
import copy
import hashlib
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mtdiff.checks import check_names
from mtdiff.files import to_json, write_atomic
from mtdiff.model import MTDiffusion
from mtdiff.optional import needed

OPSET = 18
"""The ONNX operator set of exported graphs."""


def export_onnx(model: MTDiffusion, path: str | Path, given: Collection[str] | None = None) -> Path:
    """Write `model.predict` in float32 as an ONNX graph, and all else that a sampler needs as JSON of the same name.

    Inputs of the graph, B of each: `z` (B, *Z), `t` (B,) int64, `present.NAME` (B,) bool of every modality, and of what
    can be given `given.NAME` and `known.NAME` (B,) bool; where it is not known, any valid value will do. Outputs:
    `aggregate`, `estimate.NAME` and `unknown` as in `Prediction`, `law.NAME.mean`, `law.NAME.logits` or what else the laws
    hold, and `code.NAME`, E(x) of what is given and in the state.

    The JSON has shapes of inputs and outputs, T, abar, cumulative weights, the step at which modalities are read, what
    prediction, rules and sampler are, and the card. Bytes of a picture x / 127.5 - 1.

    Args:
        path: ends in .onnx; returned.
        given: names of what the graph can be given; None: what training gave.

    Raises:
        ValueError: another ending, a model that is no MT-Diffusion, or a modality that the backbone cannot be given.
        KeyError: given names an unknown modality.
        ImportError: ONNX is not installed.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"the path must end in .onnx, got {path}")
    if not isinstance(model, MTDiffusion):
        raise ValueError(f"only the predictions of MT-Diffusion can be exported, not a {type(model).__name__}")
    model = copy.deepcopy(model).cpu().float().eval()
    names = model.taught or model.conditions if given is None else check_names("given", given, model.modalities)
    graph = _Graph(model, [name for name in model.modalities if name in names])
    feeds = graph.example()
    with torch.no_grad():
        results = graph(**feeds)
        data = _exported(graph, feeds, list(results))
    about = {
        "opset": OPSET,
        "sha256": hashlib.sha256(data).hexdigest(),
        "inputs": _said(graph.named(feeds)),
        "outputs": _said(results),
        **_tables(model),
        "card": model.card,
    }
    write_atomic(path, data)
    write_atomic(path.with_suffix(".json"), (to_json(about, indent=1) + "\n").encode())
    return path


class _Graph(nn.Module):
    """A model as a function of tensors alone."""

    def __init__(self, model: MTDiffusion, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        present: Mapping[str, Tensor],
        given: Mapping[str, Tensor] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The outputs of the graph, {name: (B, ...)}."""
        said = self.model(z, t, given, present, known)
        out = {"aggregate": said.aggregate, **({} if said.unknown is None else {"unknown": said.unknown})}
        out |= {f"estimate.{name}": code for name, code in said.estimate.items()}
        for name, law in said.law.items():
            out |= {f"law.{name}.{part}": value for part, value in vars(law).items() if isinstance(value, Tensor)}
        entering = {name: value for name, value in (given or {}).items() if name in self.model.process.entering}
        return out | {f"code.{name}": code for name, code in self.model.encode(entering).items()}

    def example(self) -> dict:
        """Two states and what goes with them: values that the heads draw there."""
        z, t = torch.zeros(2, *self.model.space), torch.full((2,), self.model.process.steps)
        values = self.model.read(z, self.model.process.steps)
        given = {name: values[name] for name in self.names}
        here, known = ({name: torch.ones(2, dtype=torch.bool) for name in each} for each in (self.model.modalities, given))
        return {"z": z, "t": t, "present": here, **({"given": given, "known": known} if given else {})}

    @staticmethod
    def named(feeds: dict) -> dict[str, Tensor]:
        """The inputs as the graph calls them, in their order."""
        parts = {f"{kind}.{name}": value for kind in [*feeds][2:] for name, value in feeds[kind].items()}
        return {"z": feeds["z"], "t": feeds["t"], **parts}


def _exported(graph: _Graph, feeds: dict, outputs: list[str]) -> bytes:
    """The graph as a file holds it, without traces of the code that it was made of."""
    with needed("export_onnx", "onnx"):
        import onnxscript  # noqa: F401
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    batch = torch.export.Dim("batch")
    with _quiet():
        shapes = torch.utils._pytree.tree_map(lambda _: {0: batch}, feeds)
        program = torch.onnx.export(
            torch.export.export(graph, (), feeds, dynamic_shapes=shapes, strict=True),
            input_names=list(graph.named(feeds)),
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    ClearMetadataAndDocStringPass()(program.model)
    return program.model_proto.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself and of libraries that it does not need."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _said(values: Mapping[str, Tensor]) -> dict[str, dict]:
    """Shape and type of each, whatever the number of examples."""
    return {
        name: {"shape": ["batch", *value.shape[1:]], "type": str(value.dtype).removeprefix("torch.")}
        for name, value in values.items()
    }


def _tables(model: MTDiffusion) -> dict:
    """What a sampler has to know of process and model."""
    process = model.process
    return {
        "space": model.space,
        "T": process.steps,
        "first": process.first,
        "abar": process.schedule.abar.tolist(),
        "weights": {name: process.cumulative(name).tolist() for name in process.names},
        "moving": process.moving,
        "prior": process.prior,
        "order": model.order,
        "conditions": model.conditions,
        **{key: value for key, value in model.architecture().items() if key in ("modalities", "prediction")},
        "rule": model.rule,
        "sampler": model.sampler,
    }
