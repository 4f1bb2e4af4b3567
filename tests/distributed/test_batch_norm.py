"""Batch norm over processes: the moments of all images, whatever their mean, in the same order of sums on each process."""

import pytest
import torch

from helpers.worlds import run_world

pytestmark = pytest.mark.distributed


def images():
    """Eight, with a mean some thousand times as large as the spread."""
    return 10 + 0.003 * torch.randn(8, 6, 8, 8, generator=torch.Generator().manual_seed(0))


def outputs(processes):
    """Of both kinds of batch norm on this process's images; of the first the variance that it remembers too."""
    import torch.distributed as dist

    from scalegan.models.batch_norm import BatchNorm

    if processes > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if processes > 1 else 0
    ours = images().chunk(processes)[rank]
    kept, formula = BatchNorm(6, momentum=1.0), BatchNorm(6, running=False)
    return kept(ours).detach().numpy(), formula(ours).detach().numpy(), kept.running_var.numpy()


@pytest.mark.parametrize("processes", [2, 4])
def test_a_small_spread_about_a_large_mean_is_not_lost(tmp_path, processes):
    x = images().double()
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    expected = (x - mean[:, None, None]) * torch.rsqrt(var + 1e-5)[:, None, None]
    ended = run_world(tmp_path, processes, outputs, processes)
    assert not any(isinstance(e.value, Exception) for e in ended), ended
    kept, formula, variances = zip(*(e.value for e in ended), strict=True)
    for found in (kept, formula):
        torch.testing.assert_close(torch.cat([torch.from_numpy(part) for part in found]).double(), expected, atol=2e-3, rtol=0)
    unbiased = x.var((0, 2, 3))
    for variance in variances:
        torch.testing.assert_close(torch.from_numpy(variance).double(), unbiased, rtol=1e-4, atol=0)
        assert (variance == variances[0]).all()
