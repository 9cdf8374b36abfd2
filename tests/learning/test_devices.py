from __future__ import annotations

import psutil
import pytest
import torch

from stages.errors import WinnowError
from stages.learning.devices import (
    choose_autocast,
    choose_device,
    chosen_kernels,
    free_memory,
    is_out_of_memory,
    to_device,
)


def test_the_cpu_is_always_there():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(WinnowError, match=f"device = '{name}'.*use auto or cpu"):
        choose_device(name)


def test_bf16_is_taken_where_the_hardware_computes_in_it(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    for there in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        assert choose_autocast(cpu, "auto").bf16 is there
    assert choose_autocast(cpu, "bf16").bf16
    assert not choose_autocast(cpu, "fp32").bf16


def test_what_is_on_the_device_stays_as_it_is():
    tensor = torch.arange(3)
    assert to_device(tensor, torch.device("cpu")) is tensor


def test_free_memory_of_a_cpu_is_the_machine_s():
    assert 0 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


@pytest.mark.parametrize(("device", "tries"), [("cuda", True), ("cpu", False)])
def test_kernels_are_tried_out_within_and_the_choice_is_restored(device: str, tries: bool):
    before = torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), chosen_kernels(torch.device(device)):
        assert torch.backends.cudnn.benchmark == (before or tries)
        raise KeyError
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_lack_of_memory_is_known_by_what_the_allocators_say(error: Exception, expected: bool):
    assert is_out_of_memory(error) == expected
