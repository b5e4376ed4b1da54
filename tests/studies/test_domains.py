"""Domains of images, and what takes the place of an image's edge weights."""

import numpy as np
import pytest
import torch

from dgnet_det.data.classification import fashion_mnist
from studies.domains.data import DOMAINS, Batches, Images, make_images
from studies.domains.training import replacements, spread

RAMP = torch.linspace(0, 1, 64).reshape(1, 8, 8)


def test_transforms() -> None:
    found = {name: transform(RAMP) for name, transform in DOMAINS.items()}
    assert len(found) == 8
    for name, x in found.items():
        assert x.shape == RAMP.shape
        assert x.min() >= 0
        assert x.max() <= 1
        assert name == "as it is" or not torch.equal(x, RAMP)
    assert torch.equal(found["inverted"], 1 - RAMP)
    assert torch.equal(found["transposed"][0], RAMP[0].T)
    assert torch.equal(found["rows shuffled"].sort(dim=1).values, RAMP)
    assert found["times a checkerboard"].eq(0).sum() == 32
    assert torch.equal(found["quarters swapped"][0, :4, :4], RAMP[0, 4:, 4:])
    assert found["blurred and grey"].std() < 0.5 * RAMP.std()
    # Neighbours of the ramp differ by 1/63 and, from row to row, by 8/63.
    assert found["outlines"][0, :7, :7].sub(9 / 63).abs().max() < 1e-6


@pytest.mark.parametrize("num_domains", [1, 8])
def test_each_product_is_in_one_domain(products: None, num_domains: int) -> None:
    split = fashion_mnist("train")
    images = make_images(split, num_domains, 28)
    assert images.pixels.shape == (32, 28, 28)
    assert torch.equal(images.labels % 10, split.targets)
    assert torch.equal(images.labels // 10, torch.arange(32) % num_domains)
    assert torch.equal(images.pixels[0], split.data[0])
    if num_domains == 8:
        assert torch.equal(images.pixels[9], 255 - split.data[9])
        assert torch.equal(images.mirrored[12], split.data[12].flip(1).T)


def test_batches_are_shifted_images_in_every_order_once() -> None:
    pixels = torch.arange(8, dtype=torch.uint8)[:, None, None].expand(8, 4, 4)
    images = Images(pixels, pixels + 100, torch.arange(8), 1)
    batches, again = Batches(images, 4, seed=1), Batches(images, 4, seed=1)
    seen = []
    for _ in range(2):
        x, labels = batches()
        assert torch.equal(x, again()[0])
        assert x.shape == (4, 1, 4, 4)
        assert torch.equal(x[:, 0, 0, 0] % 100, labels.to(torch.uint8))
        seen += labels.tolist()
    assert sorted(seen) == list(range(8))


def test_replacements_and_spread() -> None:
    values = np.random.default_rng(0).random((12, 2))
    domain = np.arange(12) % 3
    x = torch.tensor(values)
    found = {name: rows(x) for name, rows in replacements(12, 3).items()}
    means = np.stack([values[domain == d].mean(axis=0) for d in range(3)])
    assert np.allclose(found["domain_mean"], means[domain])
    assert np.allclose(found["mean"], np.broadcast_to(values.mean(axis=0), (12, 2)))
    index = {tuple(row): n for n, row in enumerate(values)}
    for name, is_same in (("same_domain", True), ("other_domain", False)):
        source = np.array([index[tuple(row)] for row in found[name].tolist()])
        assert (source != np.arange(12)).all()
        assert ((domain[source] == domain) == is_same).all()
    assert "other_domain" not in replacements(12, 1)
    figures = spread(x, 3)
    assert figures["alpha_std"] == pytest.approx(values.std(axis=0).mean())
    assert figures["alpha_std_between"] == pytest.approx(means.std(axis=0).mean())
    within = np.sqrt(((values - means[domain]) ** 2).mean(axis=0)).mean()
    assert figures["alpha_std_within"] == pytest.approx(within)
