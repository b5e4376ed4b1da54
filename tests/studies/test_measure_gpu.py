import torch

from studies import measure_gpu


def test_its_parts_work_on_a_cpu() -> None:
    images, device = torch.randn(1, 3, 64, 64), torch.device("cpu")
    steps = [
        measure_gpu.prepare(measure_gpu.build(name, "cpu"), images, mode)
        for name, mode in (("DG_R_18", "train"), ("R_18", "channels-last"))
    ]
    figures = measure_gpu.compare(*steps, device, 1)
    assert figures["ms"] > 0
    assert figures["ratio"] > 0
