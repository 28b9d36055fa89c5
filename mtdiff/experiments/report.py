"""Result files as tables that people read."""

from collections.abc import Iterable, Mapping

from mtdiff.evaluation import LABEL_RULES


def markdown(results: Iterable[Mapping]) -> str:
    """Image-label result files as one table: a row for each variant, mean ± standard error over seeds.

    Args:
        results: what `mtdiff evaluate image-label --out FILE` wrote, one or more files.

    Returns:
        A Markdown table.
    """
    head = ["variant", "joint", "joint, ddim", "pixel FD", *(f"{rule} / FD" for rule in LABEL_RULES), "label head"]
    rows = [head, ["---"] * len(head)]
    for variant, m in ((variant, m) for result in results for variant, m in result["variants"].items()):
        joint = [_number(m[line]["agreement"]) if line in m else "-" for line in ("joint", "joint_ddim")]
        conditional = [
            f"{_number(m[rule]['agreement'])} / {_number(m[rule]['frechet_pixels'], 2)}" if rule in m else "-"
            for rule in LABEL_RULES
        ]
        distance = _number(m["joint"]["frechet_pixels"], 2)
        rows.append([variant, *joint, distance, *conditional, _number(m["head_accuracy"])])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _number(entry: Mapping, digits: int = 3) -> str:
    """Mean and standard error, as far as there is one."""
    error = entry["stderr"]
    return f"{entry['mean']:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
