"""Handwritten digits at 8x8, from scikit-learn: 1797 real images, 1437 to train on and 360 to test on."""

import torch

from mtdiff.datasets.base import Dataset, one_of
from mtdiff.optional import needed


def digits(split: str = "train") -> Dataset:
    """Images (N, 1, 8, 8) in [-1, 1] and labels (N,) of "train" (1437), "test" (360) or "all" (1797): a stratified split.

    Source: Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits" (CC BY 4.0), from scikit-learn, without
        which this raises ImportError.
    """
    with needed("digits"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    one_of("split", split, ("train", "test", "all"))
    raw = load_digits()
    image = torch.from_numpy(raw.images).float()[:, None] / 8 - 1
    label = torch.from_numpy(raw.target).long()
    if split != "all":
        train, test = train_test_split(range(len(label)), test_size=360, random_state=0, stratify=raw.target)
        rows = torch.tensor(train if split == "train" else test)
        image, label = image[rows], label[rows]
    return Dataset(f"digits/{split}", {"image": image, "label": label}, tuple(map(str, range(10))))
