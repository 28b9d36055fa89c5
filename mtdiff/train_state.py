"""What a checkpoint of a training holds, whether it belongs to a training, and how that goes on from it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import torch

from mtdiff import distributed

FREE = ("steps", "log_every", "save_every", "probe_every")
"""What may change in a config when a training goes on: no step that was taken depends on it."""
NOTED = ("step", "seconds", "history", "probes", "lengthened", "sums", "shares")
LEARNED = ("model", "ema", "optimizer")
"""Attributes of a `Trainer` that a checkpoint holds: as they are, or their `state_dict`."""


class GlobalGenerators:
    """Torch's global generators as one training uses them, for dropout; the caller's come back afterwards.

    Attributes:
        states: of the CPU's and, or None, of the GPU's.
    """

    def __init__(self, seed: int, device: torch.device):
        self.devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(self.devices):
            torch.manual_seed(seed)
            self.states = self._now()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Draw from where the training left them."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.states[0])
            for device in self.devices:
                torch.cuda.set_rng_state(self.states[1], device)
            yield
            self.states = self._now()

    def _now(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.devices[0]) if self.devices else None


def collected(trainer) -> dict:
    """The whole state of a training, of all its processes: plain values and tensors."""
    randomness = ([generator.get_state() for generator in trainer.generators], *trainer.globals.states)
    shards, by_cpu, by_cuda = zip(*distributed.gathered(randomness), strict=True)
    return {
        "device": trainer.device.type,
        "config": asdict(trainer.config),
        "data": trainer.data.hash(),
        "architecture": trainer.model.fingerprint(),
        "generators": [one for process in shards for one in process],
        "torch": list(by_cpu),
        "cuda": list(by_cuda),
        **{name: getattr(trainer, name) for name in NOTED},
        **{name: getattr(trainer, name).state_dict() for name in LEARNED},
    }


def compare(trainer, state: Mapping) -> None:
    """Whether a state is of this training, as far as another run of it may go on with it.

    Raises:
        ValueError: it is of another config, device, data set or model; the message says what to do.
    """
    path, world = trainer.folder.state, distributed.world()
    mine = {**asdict(trainer.config), "accumulate": trainer.shards}
    theirs = {**state["config"], "accumulate": len(state["generators"])}  # however divided among processes
    different = {k: f"{k}: {theirs.get(k)} there, {v} here" for k, v in mine.items() if theirs.get(k) != v and k not in FREE}
    if different:
        parts, rest = divmod(theirs["accumulate"], world)
        divide = f"use a number of processes that divides {theirs['accumulate']}" if rest else f"use --accumulate {parts}"
        way = divide if list(different) == ["accumulate"] else "use another folder"
        raise ValueError(f"{path} was trained with another config ({'; '.join(different.values())}): {way}")
    if theirs["steps"] > mine["steps"]:
        text = f"{path} is at step {state['step']} of {theirs['steps']}, and can be made longer, not shorter"
        raise ValueError(f"{text} (steps: {theirs['steps']} there, {mine['steps']} here): use another folder")
    if state["device"] != trainer.device.type:
        raise ValueError(f"{path} was trained on {state['device']}, and can only go on there, not on {trainer.device.type}")
    if not trainer.data.has_hash(state["data"]):
        raise ValueError(f"{path} was trained on other data than {trainer.data.name!r}: use another folder")
    if state["architecture"] != trainer.model.fingerprint():
        raise ValueError(f"{path} belongs to another model (process, modalities or backbone): use another folder")


def restore(trainer, state: Mapping) -> None:
    """Put a training where a state of it was."""
    for name in NOTED:
        setattr(trainer, name, state[name])
    for name in LEARNED:
        getattr(trainer, name).load_state_dict(state[name])
    for k, generator in enumerate(trainer.generators, trainer.rank * trainer.config.accumulate):
        generator.set_state(state["generators"][k].cpu())
    mine = trainer.rank % len(state["torch"])
    trainer.globals.states = tuple(None if s[mine] is None else s[mine].cpu() for s in (state["torch"], state["cuda"]))
    if state["config"]["steps"] < trainer.config.steps:
        trainer.lengthened.append([state["step"], state["config"]["steps"]])
