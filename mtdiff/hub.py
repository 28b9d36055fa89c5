"""Saved models on the Hugging Face hub: weights, card and a page. Nothing is looked up there without the prefix hf:."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from mtdiff.cards import figures, page
from mtdiff.files import CARD, WEIGHTS, imports, save, write_atomic
from mtdiff.optional import needed

PREFIX = "hf:"
"""What the name of a model on the hub begins with."""


def fetched(name: str) -> Path:
    """The folder of "hf:USER/MODEL", or "hf:USER/MODEL@REVISION": card and weights alone, kept in the hub's own cache.

    Raises:
        FileNotFoundError: there is no such model, or it cannot be reached.
        ImportError: huggingface_hub is not installed.
    """
    with needed(f"{PREFIX} (the hub)", "hub"):
        import huggingface_hub
    which, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        found = huggingface_hub.snapshot_download(which, revision=revision or None, allow_patterns=[CARD, WEIGHTS])
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"no model at {name!r}: {' '.join(str(error).split())}") from None
    if not (Path(found) / CARD).is_file():
        raise FileNotFoundError(f"{name!r} has no {CARD}: it is no model of mtdiff")
    return Path(found)


def published(network, repo: str, license: str, private: bool = False) -> str:
    """Upload a network as USER/MODEL: weights, card, and README.md as the hub's model card. Returns the address.

    Args:
        license: by the hub's names, such as "mit" or "cc-by-4.0": what others may do with the weights.
        private: whether a repository that is made now is.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: the hub refuses, or cannot be reached.
    """
    with needed("push_to_hub", "hub"):
        import huggingface_hub
    with tempfile.TemporaryDirectory() as folder:
        save(folder, network)
        card = {**network.card, **({"imports": homes} if (homes := imports(network)) else {})}
        text = page(repr(network), card, PREFIX + repo, _front(card, repo, license, [*network.modalities]))
        write_atomic(Path(folder) / "README.md", text.encode())
        hub = huggingface_hub.HfApi(library_name="mtdiff")
        hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model of mtdiff")
    return f"{hub.endpoint}/{repo}"


def _front(card: Mapping, repo: str, license: str, modalities: list[str]) -> str:
    """The hub's front matter in YAML: licence, tags, and the figures with the data that they are of."""
    from huggingface_hub import EvalResult, ModelCardData

    task, data = card.get("experiment", "multi-modal-generation"), card.get("data", {}).get("name")
    counts = ("n", "seed")
    results = [
        EvalResult(task_type=task, dataset_type=data, dataset_name=data, metric_type=name, metric_value=value)
        for name, value in figures(card.get("metrics", {})).items()
        if data and name.split(" / ")[-1] not in counts
    ]
    more = {"model_name": repo.rpartition("/")[2], "eval_results": results} if results else {}
    tags = ["mtdiff", "diffusion", "multi-modal", *modalities]
    return ModelCardData(license=license, library_name="mtdiff", tags=tags, **more).to_yaml()
