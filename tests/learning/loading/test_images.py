import gc
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.learning.loading import images as module
from stages.learning.loading.images import open_images

CPU = torch.device("cpu")


def arrays(tmp_path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (50, 6, 5, 1), np.uint8)
    np.save(tmp_path / "images.npy", grey)
    return {
        "in memory": grey,
        "mapped": np.load(tmp_path / "images.npy", mmap_mode="r"),
        "a piece of what is mapped": np.load(tmp_path / "images.npy", mmap_mode="r")[10:, ::-1],
        "read-only": np.frombuffer(grey.tobytes(), np.uint8).reshape(grey.shape),
        "features": rng.normal(size=(50, 16)).astype(np.float32),
    }


@pytest.mark.parametrize(
    "which", ["in memory", "mapped", "a piece of what is mapped", "read-only", "features"]
)
@pytest.mark.parametrize("resident", [True, False, None])
def test_the_same_batches_wherever_the_images_lie(tmp_path: Path, which: str, resident: bool | None):
    array = arrays(tmp_path)[which]
    rng = np.random.default_rng(1)
    batches = [torch.from_numpy(rng.integers(0, len(array), 8)) for _ in range(5)]
    images = open_images(array, CPU, resident=resident)
    assert len(images) == len(array)
    for number, index in enumerate(batches):
        batch = images.gather(index)
        if number < 4:
            images.prefetch(batches[number + 1])
        assert batch.dtype == torch.from_numpy(np.array(array[:1])).dtype
        assert np.array_equal(batch.numpy(), array[index.numpy()])


def test_what_was_made_ready_in_vain_does_no_harm(tmp_path: Path):
    array = arrays(tmp_path)["mapped"]
    images = open_images(array, CPU, resident=False)
    images.prefetch(torch.tensor([1, 2, 3]))
    images.prefetch(torch.tensor([4, 5, 6]))
    assert np.array_equal(images.gather(torch.tensor([7, 8])).numpy(), array[7:9])
    images.prefetch(torch.tensor([0]))
    assert np.array_equal(images.gather(torch.tensor([0])).numpy(), array[:1])


def test_an_index_that_is_not_there_is_an_error_in_either_case(tmp_path: Path):
    array = arrays(tmp_path)["mapped"]
    for resident in (True, False):
        images = open_images(array, CPU, resident=resident)
        images.prefetch(torch.tensor([50]))
        with pytest.raises(IndexError):
            images.gather(torch.tensor([50]))


def test_they_are_held_where_they_take_a_small_share_of_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = arrays(tmp_path)
    monkeypatch.setattr(module, "free_memory", lambda device: 3 * found["mapped"].nbytes)
    assert isinstance(open_images(found["mapped"], CPU), module._Resident)
    monkeypatch.setattr(module, "free_memory", lambda device: 2 * found["mapped"].nbytes)
    assert isinstance(open_images(found["mapped"], CPU), module._Streamed)
    assert isinstance(open_images(found["mapped"][::-1], CPU), module._Streamed)
    # What is in a CPU's memory anyway takes nothing.
    assert isinstance(open_images(found["in memory"], CPU), module._Resident)


def test_images_in_memory_are_not_copied(tmp_path: Path):
    array = arrays(tmp_path)["in memory"]
    images = open_images(array, CPU)
    array[3] = 77
    assert (images.gather(torch.tensor([3])) == 77).all()


def test_the_thread_ends_with_the_images(tmp_path: Path):
    before = set(threading.enumerate())
    images = open_images(arrays(tmp_path)["mapped"], CPU, resident=False)
    images.prefetch(torch.tensor([1]))
    images.gather(torch.tensor([1]))
    (reader,) = set(threading.enumerate()) - before
    assert reader.is_alive()
    del images
    gc.collect()
    reader.join(10)
    assert not reader.is_alive()
