"""Export a trained model as ONNX: `python -m stages.export`. No stage of the pipeline."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path

from stages.dataset.files import new_file
from stages.errors import WinnowError
from stages.workflow.models import model_folder
from stages.workflow.stage import clean_exit


def main(argv: list[str] | None = None) -> None:
    """Export a trained model to ONNX: uint8 images N×H×W×C in, class probabilities N×K out.

    The exported model is run beside the original on random images before it is written; a difference
    above 1e-4 is an error. Needs the optional packages: pip install 'winnow[onnx]'.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stages.export",
        description=inspect.getdoc(main),
        epilog="examples: python -m stages.export models/finetune\n"
        "          python -m stages.export models:/winnow@champion --out champion.onnx",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder that train, finetune or baseline wrote, or an MLflow address models:/NAME@ALIAS",
    )
    parser.add_argument(
        "--out", type=Path, help="default: the model's name with .onnx, in the current folder"
    )
    options = parser.parse_args(argv)
    with clean_exit("export"), model_folder(options.model) as folder:
        from stages.learning.store import load_model
        from stages.serving.onnx import export_onnx

        out = options.out or Path(f"{default_name(options.model)}.onnx")
        if out.is_dir():
            raise WinnowError(f"--out {out} is a folder: name a file in it")
        model = load_model(folder)
        with new_file(out) as file:
            difference = export_onnx(model, file)
        height, width, channels = model.spec.image_shape
        print(
            f"export: {out}: images uint8 N×{height}×{width}×{channels} to probabilities "
            f"N×{len(model.spec.classes)}; at most {difference:.1e} from PyTorch's"
        )


def default_name(model: str) -> str:
    """Return what a model is called: the folder's name, or the one in the registry."""
    if (registered := re.match(r"models:/([^/@]+)", model)) is not None:
        return registered[1]
    return Path(model).resolve().name


if __name__ == "__main__":
    main()
