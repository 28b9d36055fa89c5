"""Result files as tables that people read."""

from collections.abc import Mapping

RULES = ("substitute", "bayes", "conditioned")


def markdown(result: Mapping) -> str:
    """The table of an image-label result file: a row for each variant, mean and standard error over seeds.

    Args:
        result: what `mtdiff evaluate image-label --out FILE` wrote.

    Returns:
        A Markdown table.
    """
    head = ["variant", "joint: agreement", "pixel FD", *(f"{rule}: agreement / FD" for rule in RULES), "label head"]
    rows = [head, ["---"] * len(head)]
    for variant, m in result["variants"].items():
        conditional = [
            f"{_number(m[rule]['agreement'])} / {_number(m[rule]['frechet_pixels'], 2)}" if rule in m else "-"
            for rule in RULES
        ]
        joint = m["joint"]
        rows.append(
            [
                variant,
                _number(joint["agreement"]),
                _number(joint["frechet_pixels"], 2),
                *conditional,
                _number(m["head_accuracy"]),
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _number(entry: Mapping, digits: int = 3) -> str:
    """Mean and standard error, as far as there is one."""
    error = entry["stderr"]
    return f"{entry['mean']:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
