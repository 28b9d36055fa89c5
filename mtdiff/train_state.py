"""What a checkpoint of a training holds, whether it belongs to a training, and how that goes on from it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import torch

from mtdiff import distributed
from mtdiff.checkpoint import BEGINNING
from mtdiff.files import to_json

FREE = ("steps", "log_every", "save_every", "probe_every")
"""What may change in a config when a training goes on: no step that was taken depends on it."""
NOTED = ("step", "seconds", "history", "probes", "lengthened", "sums", "shares")
LEARNED = ("model", "ema", "optimizer")
"""Attributes of a `Trainer` that a checkpoint holds: as they are, or their `state_dict`."""


def seeded_states(seed: int, device: torch.device) -> list[torch.Tensor]:
    """States of torch's global generators, which dropout draws from: of the CPU's and, on a GPU, of that one's."""
    return [torch.Generator(one).manual_seed(seed).get_state() for one in ("cpu", *_gpus(device))]


@contextlib.contextmanager
def drawing_from(states: list[torch.Tensor], device: torch.device) -> Iterator[None]:
    """Torch's global generators go on from these states, and leave theirs there; the caller's come back afterwards."""
    gpus = _gpus(device)
    with torch.random.fork_rng(gpus):
        torch.set_rng_state(states[0])
        for gpu in gpus:
            torch.cuda.set_rng_state(states[1], gpu)
        yield
        states[:] = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, gpus)]


def _gpus(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def collected(trainer) -> dict:
    """The whole state of a training, of all its processes: plain values and tensors."""
    randomness = [generator.get_state() for generator in trainer.generators], trainer.states
    shards, states = zip(*distributed.gathered(randomness), strict=True)
    return {
        "device": trainer.device.type,
        "config": asdict(trainer.config),
        "data": trainer.data.hash(),
        "architecture": trainer.model.fingerprint(),
        "card": to_json(trainer.ema.module.card),
        "generators": [one for process in shards for one in process],
        "torch": [cpu for cpu, *_ in states],
        "cuda": [gpu[0] if gpu else None for _, *gpu in states],
        **{name: getattr(trainer, name) for name in NOTED},
        **{name: getattr(trainer, name).state_dict() for name in LEARNED},
    }


def compare(trainer, state: Mapping) -> None:
    """Raise ValueError, which says what to do, where a state is of another config, device, data set or model."""
    path, world = trainer.folder.state, distributed.world()
    mine = {**asdict(trainer.config), "accumulate": trainer.shards}
    theirs = {**state["config"], "accumulate": len(state["generators"])}  # however divided among processes
    different = {k: f"{k}: {theirs.get(k)} there, {v} here" for k, v in mine.items() if theirs.get(k) != v and k not in FREE}
    if different:
        parts, rest = divmod(theirs["accumulate"], world)
        divide = f"use a number of processes that divides {theirs['accumulate']}" if rest else f"use --accumulate {parts}"
        way = divide if list(different) == ["accumulate"] else "use another folder"
        raise ValueError(f"{path} was trained with another config ({'; '.join(different.values())}): {way}")
    if theirs["steps"] > mine["steps"] and _fallen(state["step"], mine["steps"], mine["decay"]):
        text = f"{path} is at step {state['step']} of {theirs['steps']}: too late to end at {mine['steps']}"
        raise ValueError(f"{text}, for which its learning rate should have begun to fall before: use another folder")
    if state["device"] != trainer.device.type:
        raise ValueError(f"{path} was trained on {state['device']}, and can only go on there, not on {trainer.device.type}")
    if not trainer.data.has_hash(state["data"]):
        raise ValueError(f"{path} was trained on other data than {trainer.data.name!r}: use another folder")
    if state["architecture"] != trainer.model.fingerprint():
        raise ValueError(f"{path} belongs to another model (process, modalities or backbone): use another folder")
    mine, theirs = (_beginning(card) for card in (to_json(trainer.model.card), state.get("card", "{}")))
    if mine and "card" in state and mine != theirs:
        text = f"{path} did not begin with the weights of that model"
        raise ValueError(f"{text}: go on without naming it, or use another folder")


def restore(trainer, state: Mapping) -> None:
    """Put a training where a state of it was."""
    for name in NOTED:
        setattr(trainer, name, state[name])
    for name in LEARNED:
        getattr(trainer, name).load_state_dict(state[name])
    for k, generator in enumerate(trainer.generators, trainer.rank * trainer.config.accumulate):
        generator.set_state(state["generators"][k].cpu())
    mine = trainer.rank % len(state["torch"])
    trainer.states = [states[mine].cpu() for states in (state["torch"], state["cuda"]) if states[mine] is not None]
    if "card" in state:  # what it began with: neither has to be loaded again
        trainer.model.card, trainer.ema.module.card = json.loads(state["card"]), json.loads(state["card"])
    steps = state["config"]["steps"]
    if steps < trainer.config.steps and _fallen(trainer.step, steps, trainer.config.decay):
        trainer.lengthened.append([state["step"], steps])


def _fallen(step: int, steps: int, decay: float) -> bool:
    """Whether the learning rate has begun to fall in the first so many of a training's steps (`Trainer._schedule`)."""
    return step - 1 > steps - decay * steps


def _beginning(card: str) -> dict:
    """What a card, as JSON, says of the model that its training began with."""
    return {key: value for key, value in json.loads(card).items() if key in BEGINNING}
