"""Result files as tables that people read.

The columns of a table are declared: {title: cell}, where <a/b:1> stands for the number at result["a"]["b"] with one digit
(three unless said), and of cells that are separated by | the first counts whose numbers were all measured.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from mtdiff.comparison import Difference, tally
from mtdiff.datasets.planted import SHARES
from mtdiff.experiments.label_scores import LABEL_RULES
from mtdiff.metrics import TEMPERATURES
from mtdiff.reading import naming, read_json

LABELS = {
    "joint": "<joint/agreement>",
    "joint, ddim": "<joint_ddim/agreement>",
    "pixel FD": "<joint/frechet_pixels:2>",
    **{f"{rule} / FD": f"<{rule}/agreement> / <{rule}/frechet_pixels:2>" for rule in LABEL_RULES},
    "label head": "<head_accuracy> | <head/accuracy>",
}
LABELS["conditioned / FD"] += " | <guidance/1.0/agreement> / <guidance/1.0/frechet_pixels:2>"
HEADS = {
    "accuracy": "<head/accuracy>",
    "nats": "<head/nats>",
    "calibration error": "<head/calibration_error>",
    "temperature": "<head/temperature>",
    "nats, scaled": "<head/nats_scaled>",
    "calibration error, scaled": "<head/calibration_error_scaled>",
}
GUIDANCES = {
    "agreement": "<agreement>",
    "feature distance": "<features:2>",
    "precision": "<precision>",
    "recall": "<recall>",
}
BOUNDS = {
    "image, bits/dim": "<bound/image_bits_per_dim>",
    "image, nats": "<bound/image:2>",
    "label given image, nats": "<bound/label_given_image:2>",
    "sum, nats": "<bound/sum:2>",
    "joint, nats": "<bound/joint:2>",
}
REPRESENTATIONS = {
    "given": "<given/features:1>",
    "found again": "<given/retrieval>",
    "read": "<read/0>",
    "belongs together": "<drawn/label>",
}
PHOTOGRAPHS = {
    "alone": "<alone/frechet:1> / <alone/kernel> | <alone/kernel>",
    "precision / recall": "<alone/precision:2> / <alone/recall:2>",
    "joint": "<joint/frechet:1> / <joint/kernel> | <joint/kernel>",
    "class given": "<guidance 1.0/classes>",
    "bits/dim": "<bound/bits_per_dim>",
    "label head": "<head/accuracy>",
    "told": "<told/0.5/psnr:1> / <told/0.5/ssim>",
    "repeated": "<repeated/0.5/psnr:1> / <repeated/0.5/ssim>",
    "box": "<box/overlap>",
}
ANY = {
    "all pairs": "<pairs/mean>",
    "worst": "<pairs/least>",
    "words to image": "<matrix/caption/image>",
    "image to words": "<matrix/image/caption>",
    "image to label": "<matrix/image/label>",
    "image to segments": "<matrix/image/segmentation>",
    "image to depth": "<matrix/image/depth>",
    "segments to image": "<matrix/segmentation/image>",
    "depth to image": "<matrix/depth/image>",
}

DENSE = {
    "depth, RMSE / delta": "<depth/rmse> / <depth/delta>",
    "segmentation, mIoU": "<segmentation/miou>",
    "instances, PQ": "<instances/quality>",
    "restoration, dB": "<restoration/psnr:1>",
    "pictures": "<alone/features:1>",
}
VAES = {
    "conditional": "<coherence>",
    "joint": "<joint/diffusion/coherence> | <joint/chain/coherence>",
    "by chance": "<joint/diffusion/chance> | <joint/chain/chance>",
    "joint, N(0, I)": "<joint/normal/coherence>",
    "distance, first": "<mean/temple/distance:1> | <mean/image/distance:1>",
    "distance, others": "<mean/trees/distance:1> / <mean/flower/distance:1> | <mean/segmentation/distance:1>",
    "probe": "<probe/all>",
    "bound, nats": "<bound/total:0>",
}


def markdown(results: Iterable[Mapping | str | Path]) -> str:
    """Result files of one experiment as one Markdown table: a row for each variant, mean ± standard error over seeds.

    Args:
        results: what `mtdiff evaluate EXPERIMENT --out FILE` wrote: one or more files, or what is in them.

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
    planted = all(result.get("data") in SHARES for result in results)
    tables = {"image-label": colours if planted else labels, "image-representation": representations}
    tables |= {"image-transition": transitions, "masked-image": inpaintings, "imagenet": photographs}
    tables |= {"any-to-any": conditionals, "dense": answers, "multimodal-vae": latents, "restoration": restorations}
    return tables[kinds.pop()](results)


def conditionals(results: Iterable[Mapping]) -> str:
    """The table of any-to-any: how much of what one modality says, another that is drawn for it says, too."""
    rows = [(result["data"], *row) for result in results for row in _rows([result])]
    return _table(["data", "variant"], ANY, rows)


def answers(results: Iterable[Mapping]) -> str:
    """The table of dense: how good answers to each task are that a variant was taught; of a generator its pictures."""
    return _table(["variant"], DENSE, _rows(results))


def latents(results: Iterable[Mapping]) -> str:
    """The table of multimodal-vae: coherence, feature distance to real values, and what the latent says."""
    rows = [(result["data"], *row) for result in results for row in _rows([result])]
    return _table(["data", "variant"], VAES, rows)


def labels(results: Iterable[Mapping]) -> str:
    """The table of image-label: joint and conditional samples, and the label head."""
    return _table(["variant"], LABELS, _rows(results))


def heads(results: Iterable[Mapping]) -> str:
    """What label heads are worth on held-out images: accuracy, cross-entropy and calibration, before and after temperature.

    A variant without a head has no row. Where a temperature is at an end of `TEMPERATURES`, it has no mean: those of the
    runs are listed.
    """
    rows = []
    for result in results:
        for variant, m in result["variants"].items():
            if "head" not in m:
                continue
            runs = [run["metrics"]["head"] for run in result.get("runs", ()) if run["variant"] == variant]
            each = [_limited(run["temperature"]) for run in runs]
            listed = {"temperature": ", ".join(each)} if any(not text[0].isdigit() for text in each) else {}
            rows.append((variant, {"head": {**m["head"], **listed}}))
    return _table(["variant"], HEADS, rows)


def _limited(t: float) -> str:
    """A temperature, as a bound where it is at an end of the range that was searched."""
    low, high = TEMPERATURES
    return f"≤ {low:g}" if t * 0.999 <= low else f"≥ {high:g}" if t * 1.001 >= high else f"{t:.3f}"


def guidances(results: Iterable[Mapping]) -> str:
    """Samples of given labels at every scale of guidance: how many the judge calls right, how real, how varied they are.

    A variant that cannot be told labels has no rows.
    """
    rows = [(variant, scale, line) for variant, m in _rows(results) for scale, line in m.get("guidance", {}).items()]
    return _table(["variant", "guidance"], GUIDANCES, rows)


def findings(found: Mapping[str, Mapping[str, Difference]], less: Collection[str] = ()) -> str:
    """What `plots.difference_panels` shows of the same two, in words: which are clear, and out of how many."""
    lines = []
    for name, column in found.items():
        verdicts = {"better": [], "worse": []}
        for row, difference in column.items():
            if difference.clear:
                verdict = "better" if (difference.mean < 0) == (name in less) else "worse"
                verdicts[verdict].append(f"{row} ({difference.mean:+.3g} ± {difference.stderr:.2g})")
        lines += [f"- *{name}*: clearly {verdict}: {', '.join(rows)}" for verdict, rows in verdicts.items() if rows]
    count = tally(difference for column in found.values() for difference in column.values())
    return "\n".join([*lines, "", count.replace(" (*)", "") + "."])


def bounds(results: Iterable[Mapping]) -> str:
    """The likelihood bounds in image-label results; a variant without a bound has no row."""
    return _table(["variant"], BOUNDS, [row for row in _rows(results) if "bound" in row[-1]])


def colours(results: Iterable[Mapping]) -> str:
    """How often drawn shapes have their own colour, where that was planted: in joint and in conditional samples."""
    rows = [(f"{result['data'][7:]}%", *row) for result in results for row in _rows([result])]
    return _table(["planted", "variant"], {kind: f"<{kind}/own>" for kind in _keys(rows)}, rows)


def transitions(results: Iterable[Mapping]) -> str:
    """The table of image-transition: SSIM and PSNR where the source determines the target, scenes and distance elsewhere."""
    rows, cell = _rows(results), "<{0}/ssim> / <{0}/psnr:1> | <{0}/scene> / <{0}/features:1>"
    return _table(["variant"], {name: cell.format(name) for name in rows[0][-1] if name not in ("ddim", "bound")}, rows)


def inpaintings(results: Iterable[Mapping], share: str = "0.5") -> str:
    """The table of masked-image: distance of drawn images, and PSNR / SSIM of each way to inpaint at one hidden share."""
    rows, columns = _rows(results), {kind: f"<{kind}/features:1>" for kind in ("alone", "joint")}
    ways = {way: f"<{way}/{share}/psnr:1> / <{way}/{share}/ssim>" for way in _keys(rows) if way not in columns}
    shares = _keys([(m[way],) for _, m in rows for way in ways if way in m])
    if ways and share not in shares:
        raise KeyError(f"share must be one of {shares}, got {share!r}")
    return _table(["variant"], columns | ways, rows)


def restorations(results: Iterable[Mapping]) -> str:
    """The table of restoration: PSNR / SSIM of each way of a variant, a column for each task."""
    rows = [(variant, way, figures) for variant, m in _rows(results) for way, figures in m.items()]
    return _table(["variant", "way"], {task: f"<{task}/psnr:1> / <{task}/ssim:2>" for task in _keys(rows)}, rows)


def representations(results: Iterable[Mapping]) -> str:
    """The table of image-representation: images, and what their representations are worth.

    Columns: feature distance of images drawn alone, jointly at each scale of guidance, and for given representations; how
    often those are found again; how much of a representation is read off a clean image; and how often a probe of a jointly
    drawn representation says what the judge reads off the image.
    """
    rows = _rows(results)
    scales = _keys([(m.get("guidance", {}),) for _, m in rows])
    joint = {"joint" if float(s) == 1 else f"guidance {s}": f"<guidance/{s}/features:1>" for s in scales}
    return _table(["variant"], {"alone": "<alone/features:1>", **joint, **REPRESENTATIONS}, rows)


def photographs(results: Iterable[Mapping]) -> str:
    """The table of imagenet: Frechet and kernel distance of drawn images, the label head, holes of half the pixels, boxes.

    Columns: the distances of images drawn alone (the Frechet one where there were more images than features), their
    precision and recall; the distances of those drawn jointly; the share of images of a given class that the network calls
    so; the bound on the image's likelihood in bits per dimension; the label head's accuracy; PSNR and SSIM of told and
    repeated filling; overlap of boxes.
    """
    rows = []
    for result in results:
        for variant, m in _rows([result]):
            drawn = {kind: m.get(kind, {}) for kind in ("alone", "joint")}
            network = next((name for kind in drawn.values() for name in kind if name != "classes"), "-")
            rows.append((result["data"], variant, network, m | {kind: d.get(network) for kind, d in drawn.items()}))
    return _table(["data", "variant", "looked at by"], PHOTOGRAPHS, rows)


def _rows(results: Iterable[Mapping]) -> list[tuple[str, Mapping]]:
    """(variant, its figures) of all variants of all results."""
    return [row for result in results for row in result["variants"].items()]


def _keys(rows: Iterable[Sequence]) -> list[str]:
    """All keys of the figures, which stand last in the rows, in the order in which they come."""
    return list(dict.fromkeys(key for *_, m in rows for key in m))


def _table(lead: Sequence[str], columns: Mapping[str, str], rows: Iterable[Sequence]) -> str:
    """Rows of a text for each title of `lead`, and of figures that `columns` are read from."""
    lines = [[*lead, *columns], ["---"] * (len(lead) + len(columns))]
    lines += [[*texts, *(_cell(m, cell) for cell in columns.values())] for *texts, m in rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(m: Mapping, cell: str) -> str:
    """A cell of the columns with numbers in it; a dash where they were not measured."""
    for choice in cell.split(" | "):
        parts = re.split(r"<([^>]*?)(?::(\d))?>", choice)  # text, path, digits, text ...
        parts[1::3] = [_number(m, path, int(digits or 3)) for path, digits in zip(parts[1::3], parts[2::3], strict=True)]
        if None not in parts[1::3]:
            return "".join(part for k, part in enumerate(parts) if k % 3 != 2)
    return "-"


def _number(m: Mapping, path: str, digits: int) -> str | None:
    """Mean and standard error, as far as there is one, or a text; None for what was not measured, or is no number."""
    for key in path.split("/"):
        m = (m or {}).get(key)
    if m is None or isinstance(m, str):
        return m
    if m["mean"] is None or math.isnan(m["mean"]):
        return None
    return f"{m['mean']:.{digits}f}" + ("" if m["stderr"] is None else f" ± {m['stderr']:.{digits}f}")
