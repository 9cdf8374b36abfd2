"""Export a trained model as ONNX, for programs that know nothing of PyTorch or Winnow."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.errors import WinnowError
from stages.learning.models import Classifier
from stages.learning.networks.layers import ModelSpec
from stages.learning.prediction import predict

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT, OUTPUT = "images", "probabilities"
TOLERANCE = 1e-4  # between the probabilities of ONNX Runtime and of PyTorch
_CHECKED = 5  # images
_LARGEST = 2**31  # bytes of a file without others beside it: a limit of protocol buffers


def export_onnx(model: Classifier, path: Path) -> float:
    """Write `model` as ONNX: uint8 images N×H×W×C in, class probabilities N×K out, for any N.

    The probabilities are those of `prediction.predict` in float32, temperature and members of an ensemble
    included. The file says `classes`, `image_shape`, and where they are known `resize` and `color` in its
    metadata, as JSON. It holds no paths, and the same model gives the same bytes.

    Returns
    -------
    The largest difference of a probability from PyTorch's, on random images; at most `TOLERANCE`.

    Raises
    ------
    WinnowError
        Where the packages for it are missing, the model cannot be exported, or the exported one says
        something else than the model.
    """
    _require()
    model = model.to("cpu").eval()
    content = _without_traces(_converted(model), model.spec)
    difference = _difference(content, model)
    if not difference <= TOLERANCE:
        raise WinnowError(
            f"{model.spec.architecture} as ONNX differs by {difference:.2g} from PyTorch's: it is not written"
        )
    path.write_bytes(content)
    return difference


class _Probabilities(nn.Module):
    """Compute probabilities from images, as `prediction.predict` does."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model
        self.temperature = model.spec.temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return (logits / self.temperature).softmax(1)


def _require() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise WinnowError(
            f"{', '.join(missing)} not installed: ONNX needs optional packages, pip install 'winnow[onnx]'"
        )


def _converted(model: Classifier) -> ModelProto:
    # Two images: an exporter that sees one takes the number for a constant.
    images = torch.zeros((2, *model.spec.image_shape), dtype=torch.uint8)
    with _quiet():
        try:
            program = torch.onnx.export(
                _Probabilities(model).eval(),
                (images,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # a chain of steps, each with exceptions of its own
            raise WinnowError(
                f"{model.spec.architecture} cannot be exported to ONNX: {str(error).splitlines()[0]}"
            ) from error
    proto: ModelProto = cast(torch.onnx.ONNXProgram, program).model_proto
    return proto


def _without_traces(proto: ModelProto, spec: ModelSpec) -> bytes:
    """Return the file's content, without the source lines and paths that the exporter notes."""
    graphs = [proto.graph, *proto.functions]
    parts: list[Any] = [proto, *graphs]
    for graph in graphs:
        parts += [*graph.node, *graph.value_info]
    parts += [*proto.graph.input, *proto.graph.output, *proto.graph.initializer]
    for part in parts:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    metadata: dict[str, object] = {"classes": spec.classes, "image_shape": list(spec.image_shape)}
    if spec.preprocessing is not None:
        metadata |= {"resize": spec.preprocessing.resize, "color": spec.preprocessing.color}
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value, ensure_ascii=False)
    if proto.ByteSize() >= _LARGEST:
        raise WinnowError(f"{spec.architecture} is too large for one ONNX file: {proto.ByteSize()} bytes")
    return proto.SerializeToString(deterministic=True)


def _difference(content: bytes, model: Classifier) -> float:
    """Return the largest difference of a probability, over several images and for a single one."""
    images = np.random.default_rng(0).integers(0, 256, (_CHECKED, *model.spec.image_shape)).astype(np.uint8)
    expected, _ = predict(model, images, "cpu")
    together, alone = _run(content, images), _run(content, images[:1])
    return float(max(np.abs(together - expected).max(), np.abs(alone - expected[:1]).max()))


def _run(content: bytes, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    from onnxruntime import InferenceSession  # type: ignore[import-untyped]

    (probabilities,) = InferenceSession(content, providers=["CPUExecutionProvider"]).run(
        [OUTPUT], {INPUT: images}
    )
    return np.asarray(probabilities, np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's warnings and log lines."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
