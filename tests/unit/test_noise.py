"""Noise from the latents' bits: normal, independent over images, layers and pixels, and of the image alone."""

import numpy as np
import pytest
import torch

from scalegan.models.noise import _mixed, noise_keys, normal_noise


def keys(n: int, z_dim: int = 8) -> torch.Tensor:
    return noise_keys(torch.randn(n, z_dim, generator=torch.Generator().manual_seed(0)))


def test_the_mixing_function_is_splitmix64():
    """The first numbers that SplitMix64 gives from the state 1234567, in unsigned 64-bit arithmetic."""
    gamma, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def reference(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    states = [(1234567 + i * gamma) & mask for i in range(1, 6)]
    assert reference(states[0]) == 6457827717110365317  # as published with the generator
    ours = _mixed(torch.from_numpy(np.array(states, dtype=np.uint64).view(np.int64)))
    assert ours.numpy().view(np.uint64).tolist() == [reference(s) for s in states]


def test_the_noise_of_an_image_is_of_no_other_and_of_no_batch():
    latents = torch.randn(6, 8)
    whole = normal_noise(noise_keys(latents), 3, 5, 7)
    assert whole.shape == (6, 1, 5, 7)
    assert whole.dtype == torch.float32
    assert torch.equal(normal_noise(noise_keys(latents[2:4]), 3, 5, 7), whole[2:4])
    assert torch.equal(normal_noise(noise_keys(latents.double()), 3, 5, 7), whole)
    assert torch.equal(normal_noise(noise_keys(latents.t().contiguous().t()), 3, 5, 7), whole)


def test_every_bit_of_the_latents_counts():
    latents = torch.randn(1, 8)
    others = [latents.clone() for _ in range(8)]
    for place, other in enumerate(others):
        other[0, place] = torch.nextafter(other[0, place], torch.tensor(9.0))
    swapped = latents.flip(1)
    found = noise_keys(torch.cat([latents, swapped, *others]))
    assert len(found.unique()) == 10


def test_the_moments_are_a_normals():
    draws = normal_noise(keys(64), 0, 64, 64).double().flatten()
    count = len(draws)
    for power, expected, spread in [(1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)]:
        assert draws.pow(power).mean().item() == pytest.approx(expected, abs=4 * spread / count**0.5), power
    for edge in (0.5, 1.0, 2.0, 3.0):  # Kolmogorov and Smirnov's distance at a few places
        share = torch.special.erf(torch.tensor(edge / 2**0.5)).item()
        assert (draws.abs() < edge).double().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.flatten().double() * b.flatten().double()).mean()) * a.numel() ** 0.5  # in standard deviations


def test_images_layers_and_pixels_are_independent():
    first = keys(64)
    draws = normal_noise(first, 0, 32, 32)
    pairs = {
        "next layer": normal_noise(first, 1, 32, 32),
        "another layer": normal_noise(first, 17, 32, 32),
        "next image": draws.roll(1, 0),
        "next column": draws.roll(1, 3),
        "next row": draws.roll(1, 2),
        "a far pixel": draws.flip(2, 3),
    }
    for name, other in pairs.items():
        assert abs(correlation(draws, other)) < 4.5, name
        assert abs(correlation(draws.square() - 1, (other.square() - 1) / 2)) < 4.5, name
    over_images = draws.flatten(1)  # one pixel, over the images
    assert over_images.mean(0).abs().max() < 5.5 / 64**0.5
    neighbours = noise_keys(torch.arange(64.0)[:, None].expand(64, 8))  # latents that are alike
    assert abs(correlation(normal_noise(neighbours, 0, 32, 32)[1:], normal_noise(neighbours, 0, 32, 32)[:-1])) < 4.5


def test_it_goes_through_functional_transforms():
    latents = torch.randn(2, 8)

    def loss(z):
        return (z.sum(1)[:, None, None, None] * normal_noise(noise_keys(z), 0, 4, 4)).sum()

    expected = normal_noise(noise_keys(latents), 0, 4, 4).sum((1, 2, 3))[:, None].expand(2, 8)
    torch.testing.assert_close(torch.func.grad(loss)(latents), expected)


@pytest.mark.slow
def test_compiled_it_is_the_same():
    compiled = torch.compile(lambda z: normal_noise(noise_keys(z), 2, 9, 5), fullgraph=True)
    latents = torch.randn(3, 8)
    torch.testing.assert_close(compiled(latents), normal_noise(noise_keys(latents), 2, 9, 5), rtol=0, atol=1e-6)
