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
        joint = [_number(m.get(line, {}).get("agreement")) for line in ("joint", "joint_ddim")]
        conditional = [
            f"{_number(m[rule]['agreement'])} / {_number(m[rule]['frechet_pixels'], 2)}" if rule in m else "-"
            for rule in LABEL_RULES
        ]
        distance = _number(m["joint"]["frechet_pixels"], 2)
        rows.append([variant, *joint, distance, *conditional, _number(m.get("head_accuracy"))])
    return _table(rows)


def bounds(results: Iterable[Mapping]) -> str:
    """The likelihood bounds in image-label result files as a table, mean ± standard error over seeds.

    Args:
        results: as in `markdown`.

    Returns:
        A Markdown table; a variant without a bound has no row.
    """
    head = ["variant", "image, bits/dim", "image, nats", "label given image, nats", "sum, nats", "joint, nats"]
    rows = [head, ["---"] * len(head)]
    for variant, m in ((variant, m) for result in results for variant, m in result["variants"].items()):
        if "bound" in m:
            b = m["bound"]
            numbers = [_number(b["image_bits_per_dim"])]
            numbers += [_number(b.get(key), 2) for key in ("image", "label_given_image", "sum", "joint")]
            rows.append([variant, *numbers])
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _number(entry: Mapping | None, digits: int = 3) -> str:
    """Mean and standard error, as far as there is one; a dash for what was not measured."""
    if entry is None:
        return "-"
    error = entry["stderr"]
    return f"{entry['mean']:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
