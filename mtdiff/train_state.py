"""What a checkpoint of a training holds, whether it belongs to a training, and how that goes on from it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import torch

from mtdiff import distributed

FREE = ("steps", "log_every", "save_every", "probe_every")
"""What may change in a config when a training goes on: no step that was taken depends on it."""


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
        "step": trainer.step,
        "device": trainer.device.type,
        "seconds": trainer.seconds,
        "config": asdict(trainer.config),
        "data": trainer.data.hash(),
        "architecture": trainer.model.fingerprint(),
        "model": trainer.model.state_dict(),
        "ema": trainer.ema.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "generators": [one for process in shards for one in process],
        "torch": list(by_cpu),
        "cuda": list(by_cuda),
        "history": trainer.history,
        "probes": trainer.probes,
        "lengthened": trainer.lengthened,
        "sums": trainer.sums,
        "shares": {name: float(share) for name, share in trainer.shares.items()},
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
    """Put a training where a state of it was, that of an older version too."""
    trainer.model.load_state_dict(state["model"])
    trainer.ema.load_state_dict(state["ema"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    for k, generator in enumerate(trainer.generators, trainer.rank * trainer.config.accumulate):
        generator.set_state(state["generators"][k].cpu())
    mine = trainer.rank % len(state["torch"])
    trainer.globals.states = tuple(None if s[mine] is None else s[mine].cpu() for s in (state["torch"], state["cuda"]))
    trainer.step, trainer.seconds = state["step"], state["seconds"]
    trainer.history, trainer.probes, trainer.sums = state["history"], state["probes"], state["sums"]
    since = trainer.step - (trainer.history[-1]["step"] if trainer.history else 0)
    trainer.shares = state.get("shares", dict.fromkeys(trainer.sums, since))  # once every step counted the same
    trainer.lengthened = list(state.get("lengthened", []))
    steps, decay = state["config"]["steps"], state["config"]["decay"]
    if steps < trainer.config.steps and state["step"] - 1 > steps - decay * steps:  # it had begun to fall
        trainer.lengthened.append([state["step"], steps])
