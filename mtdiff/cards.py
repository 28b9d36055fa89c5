"""What a saved model's card says, for people: as lines, as figures, as the page of a model hub."""

from collections.abc import Mapping

from mtdiff.files import to_json

SAID = ("experiment", "variant", "data", "training", "provenance", "based on", "new modalities", "imports")
"""Parts of a card that are told, in this order; the figures come last."""


def facts(card: Mapping) -> list[str]:
    """What a model was trained on and how, a line for each part of its card."""
    return [f"{key}: {_short(card[key])}" for key in SAID if key in card]


def figures(metrics: Mapping, lead: str = "") -> dict[str, float]:
    """All numbers of nested figures, by their path."""
    found = {}
    for key, value in metrics.items():
        name = f"{lead}{key}"
        found |= figures(value, f"{name} / ") if isinstance(value, Mapping) else {name: value}
    return found


def page(summary: str, card: Mapping, name: str, front: str) -> str:
    """The page of a model in Markdown, below its front matter in YAML: what it is, how to use it, what is known of it.

    Args:
        summary: what the model says of itself.
        name: what it is loaded by.
    """
    modules = "".join(f"import {module}  # classes of its own\n" for module in card.get("imports", ()))
    use = (
        f'{modules}import mtdiff as mt\n\nmodel = mt.load("{name}")\ndrawn = mt.sample(model, 16)  # {{modality: (16, ...)}}'
    )
    parts = [
        f"---\n{front.strip()}\n---",
        f"# {name.removeprefix('hf:')}",
        f"A multi-modal diffusion model ([arXiv:2407.17571](https://arxiv.org/abs/2407.17571)).\n\n```\n{summary}\n```",
        f"```python\n{use}\n```",
        "\n".join(f"- {line}" for line in facts(card)),
    ]
    if table := figures(card.get("metrics", {})):
        parts.append("\n".join(["| figure | value |", "|---|---|", *(f"| {k} | {v:.4g} |" for k, v in table.items())]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _short(value: object) -> str:
    """A part of a card in one line."""
    if not isinstance(value, Mapping):
        return str(value)
    said = {key: each if isinstance(each, str) else to_json(each) for key, each in value.items() if each not in ({}, None)}
    return ", ".join(f"{key} {each}" for key, each in said.items())
