"""Result files as tables that people read."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from mtdiff.experiments.label_scores import LABEL_RULES
from mtdiff.metrics import TEMPERATURES
from mtdiff.reading import naming, read_json


def markdown(results: Iterable[Mapping | str | Path]) -> str:
    """Result files of one experiment as one table: a row for each variant, mean ± standard error over seeds.

    Args:
        results: what `mtdiff evaluate EXPERIMENT --out FILE` wrote: one or more files, or what is in them.

    Returns:
        A Markdown table.

    Raises:
        FileNotFoundError: no such file.
        ValueError: files of different experiments, or something that is no result of one, by its name.
    """
    results = list(results)
    files = [result for result in results if isinstance(result, str | Path)]
    if files:
        with naming(" or ".join(map(str, files)), "is not a result of mtdiff evaluate"):
            return markdown(read_json(Path(r), "is not a result") if isinstance(r, str | Path) else r for r in results)
    kinds = {result["experiment"] for result in results}
    if len(kinds) != 1:
        raise ValueError(f"one table holds the results of one experiment, got {sorted(kinds)}")
    planted = all(result.get("data", "").startswith("planted") for result in results)
    tables = {"image-label": colours if planted else labels, "image-representation": representations}
    tables |= {"image-transition": transitions, "masked-image": inpaintings, "imagenet": photographs}
    return tables[kinds.pop()](results)


def labels(results: Iterable[Mapping]) -> str:
    """The table of image-label: joint and conditional samples, and the label head."""
    head = ["variant", "joint", "joint, ddim", "pixel FD", *(f"{rule} / FD" for rule in LABEL_RULES), "label head"]
    rows = [head, ["---"] * len(head)]
    for variant, m in ((variant, m) for result in results for variant, m in result["variants"].items()):
        joint = [_number(m.get(line, {}).get("agreement")) for line in ("joint", "joint_ddim")]
        m = {"conditioned": m["guidance"]["1.0"], **m} if "guidance" in m else m
        conditional = [
            f"{_number(m[rule]['agreement'])} / {_number(m[rule]['frechet_pixels'], 2)}" if rule in m else "-"
            for rule in LABEL_RULES
        ]
        distance = _number(m.get("joint", {}).get("frechet_pixels"), 2)
        head = m.get("head_accuracy", m.get("head", {}).get("accuracy"))
        rows.append([variant, *joint, distance, *conditional, _number(head)])
    return _table(rows)


def heads(results: Iterable[Mapping]) -> str:
    """What label heads are worth on held-out images: accuracy, cross-entropy and calibration, before and after temperature.

    Where a temperature is at an end of `TEMPERATURES`, it has no mean: those of the runs are listed.

    Args:
        results: as in `markdown`, of image-label.

    Returns:
        A Markdown table; a variant without a head has no row.
    """
    head = ["variant", "accuracy", "nats", "calibration error", "temperature", "nats, scaled", "calibration error, scaled"]
    rows = [head, ["---"] * len(head)]
    keys = ("accuracy", "nats", "calibration_error", "temperature", "nats_scaled", "calibration_error_scaled")
    for found, variant, m in ((result, variant, m) for result in results for variant, m in result["variants"].items()):
        if "head" in m:
            cells = [_number(m["head"][key]) for key in keys]
            runs = [run["metrics"]["head"] for run in found.get("runs", ()) if run["variant"] == variant]
            each = [_limited(run["temperature"]) for run in runs]
            if any(not text[0].isdigit() for text in each):
                cells[keys.index("temperature")] = ", ".join(each)
            rows.append([variant, *cells])
    return _table(rows)


def _limited(t: float) -> str:
    """A temperature, as a bound where it is at an end of the range that was searched."""
    low, high = TEMPERATURES
    return f"≤ {low:g}" if t * 0.999 <= low else f"≥ {high:g}" if t * 1.001 >= high else f"{t:.3f}"


def guidances(results: Iterable[Mapping]) -> str:
    """Samples of given labels at every scale of guidance: how many the judge calls right, how real, how varied they are.

    Args:
        results: as in `markdown`, of image-label.

    Returns:
        A Markdown table; a variant that cannot be told labels has no rows.
    """
    rows = [["variant", "guidance", "agreement", "feature distance", "precision", "recall"], ["---"] * 6]
    for variant, m in ((variant, m) for result in results for variant, m in result["variants"].items()):
        for scale, line in m.get("guidance", {}).items():
            numbers = [_number(line[key], 2 if key == "features" else 3) for key in ("agreement", "features")]
            rows.append([variant, scale, *numbers, *(_number(line[key]) for key in ("precision", "recall"))])
    return _table(rows)


def colours(results: Iterable[Mapping]) -> str:
    """How often drawn shapes have their own colour, where that was planted: in joint and in conditional samples.

    Args:
        results: as in `markdown`, of image-label on planted scenes.

    Returns:
        A Markdown table.
    """
    lines = [(r["data"], variant, m) for r in results for variant, m in r["variants"].items()]
    kinds = list(dict.fromkeys(kind for _, _, m in lines for kind in m))
    rows = [["planted", "variant", *kinds], ["---"] * (2 + len(kinds))]
    for data, variant, m in lines:
        rows.append([f"{data[7:]}%", variant, *(_number(m.get(kind, {}).get("own")) for kind in kinds)])
    return _table(rows)


def transitions(results: Iterable[Mapping]) -> str:
    """The table of image-transition: SSIM and PSNR where the source determines the target, scenes and distance elsewhere."""
    lines = [(variant, m) for result in results for variant, m in result["variants"].items()]
    directions = [name for name in lines[0][1] if name != "bound"]
    rows = [["variant", *directions], ["---"] * (1 + len(directions))]
    for variant, m in lines:
        cells = []
        for name in directions:
            cell, determined = m[name], "ssim" in m[name]
            first, second = ("ssim", "psnr") if determined else ("scene", "features")
            cells.append(f"{_number(cell[first])} / {_number(cell[second], 1)}")
        rows.append([variant, *cells])
    return _table(rows)


def inpaintings(results: Iterable[Mapping], share: str = "0.5") -> str:
    """The table of masked-image: distance of drawn images, and PSNR / SSIM of each way to inpaint at one hidden share."""
    lines = [(variant, m) for result in results for variant, m in result["variants"].items()]
    ways = list(dict.fromkeys(way for _, m in lines for way in m if way not in ("alone", "joint")))
    rows = [["variant", "alone", "joint", *ways], ["---"] * (3 + len(ways))]
    for variant, m in lines:
        drawn = [_number(m.get(kind, {}).get("features"), 1) for kind in ("alone", "joint")]
        cells = [f"{_number(m[w][share]['psnr'], 1)} / {_number(m[w][share]['ssim'])}" if w in m else "-" for w in ways]
        rows.append([variant, *drawn, *cells])
    return _table(rows)


def representations(results: Iterable[Mapping]) -> str:
    """The table of image-representation: images, and what their representations are worth.

    Columns: feature distance of images drawn alone, jointly at each scale of guidance, and for given representations; how
    often those are found again; how much of a representation is read off a clean image; and how often a probe of a jointly
    drawn representation says what the judge reads off the image.
    """
    lines = [(variant, m) for result in results for variant, m in result["variants"].items()]
    scales = list(dict.fromkeys(scale for _, m in lines for scale in m.get("guidance", {})))
    joint = ["joint" if float(scale) == 1 else f"guidance {scale}" for scale in scales]
    rows = [["variant", "alone", *joint, "given", "found again", "read", "belongs together"]]
    rows.append(["---"] * len(rows[0]))
    for variant, m in lines:
        cells = [_number(m["alone"]["features"], 1)]
        cells += [_number(m.get("guidance", {}).get(scale, {}).get("features"), 1) for scale in scales]
        given, read = m.get("given", {}), m.get("read", {})
        cells += [_number(given.get("features"), 1), _number(given.get("retrieval")), _number(read.get("0"))]
        rows.append([variant, *cells, _number(m.get("drawn", {}).get("label"))])
    return _table(rows)


def photographs(results: Iterable[Mapping]) -> str:
    """The table of imagenet: Frechet and kernel distance of drawn images, the label head, holes of half the pixels, boxes.

    Columns: the distances of images drawn alone (the Frechet one where there were more images than features), their
    precision and recall; the distances of those drawn jointly; the share of images of a given class that the network calls
    so; the bound on the image's likelihood in bits per dimension; the label head's accuracy; PSNR and SSIM of told and
    repeated filling; overlap of boxes.
    """
    head = [
        "data",
        "variant",
        "looked at by",
        "alone",
        "precision / recall",
        "joint",
        "class given",
        "bits/dim",
        "label head",
    ]
    rows = [[*head, "told", "repeated", "box"]]
    rows.append(["---"] * len(rows[0]))
    for data, variant, m in ((r["data"], variant, m) for r in results for variant, m in r["variants"].items()):
        kinds = [m.get(kind, {}) for kind in ("alone", "joint")]
        names = [name for kind in kinds for name in kind if name != "classes"]
        cells = [names[0] if names else "-"]
        alone, joint = (kind.get(cells[0]) for kind in kinds)
        both = f"{_number(alone['precision'], 2)} / {_number(alone['recall'], 2)}" if alone else "-"
        cells += [_distances(alone), both, _distances(joint)]
        cells.append(_number(m.get("guidance 1.0", {}).get("classes")))
        cells += [_number(m.get("bound", {}).get("bits_per_dim")), _number(m.get("head", {}).get("accuracy"))]
        for way in ("told", "repeated"):
            half = m.get(way, {}).get("0.5")
            cells.append(f"{_number(half['psnr'], 1)} / {_number(half['ssim'])}" if half else "-")
        rows.append([data, variant, *cells, _number(m.get("box", {}).get("overlap"))])
    return _table(rows)


def _distances(entry: Mapping | None) -> str:
    """Frechet and kernel distance, the latter alone where there were too few images for the former."""
    if entry is None:
        return "-"
    frechet, kernel = _number(entry["frechet"], 1), _number(entry["kernel"])
    return kernel if frechet == "-" else f"{frechet} / {kernel}"


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
    """Mean and standard error, as far as there is one; a dash for what was not measured, or is no number."""
    if entry is None or entry["mean"] is None or math.isnan(entry["mean"]):
        return "-"
    error = entry["stderr"]
    return f"{entry['mean']:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
