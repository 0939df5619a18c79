"""Weights of the published PyTorch programs, as models of this package, and back.

    python -m lvsm_jax.programs.convert checkpoint.pt exports/published         # from PyTorch
    python -m lvsm_jax.programs.convert runs/re10k_256/export trained.safetensors  # to PyTorch

From PyTorch: a file of `torch.save` (weights under `model` or `state_dict`, or nothing else in it)
or a .safetensors file becomes an export, which `lvsm_jax.load`, `eval.py --checkpoint` and
`train.py --config.init_from` take. Architecture and sizes are inferred; every weight must be there,
with its shape, and nothing else. Back: an export becomes a .safetensors file with the published
names. Both directions keep each float32 bit for bit. Neither needs PyTorch. See docs/weights.md.
"""

import argparse
import os
import sys

import jax
from etils import epath

from lvsm_jax.models.architectures import architecture_of
from lvsm_jax.models.base import ViewSynthesisModel
from lvsm_jax.weights.convert import export_weights, import_weights
from lvsm_jax.weights.torch_names import SIZES


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, and converts."""
    parser = argparse.ArgumentParser(
        prog="python -m lvsm_jax.programs.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file of weights, or an export")
    parser.add_argument("output", metavar="OUT", help="export to make, or .safetensors file")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at OUT")
    given = parser.parse_args(arguments)
    to_torch = epath.Path(given.checkpoint).is_dir()
    convert = export_weights if to_torch else import_weights
    try:
        model = convert(given.checkpoint, given.output, overwrite=given.overwrite)
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"error: {error}")
    print(_summary(model))
    print(f"wrote {os.fspath(given.output)}")
    if not to_torch:
        config = _CONFIGS[architecture_of(model.config)]
        print(
            f"""
What is in it, and its scores:
  python -m lvsm_jax.programs.describe {given.output}
  python eval.py --config=configs/{config}.py --checkpoint={given.output}"""
        )


# Configs with the published sizes and protocol, by architecture.
_CONFIGS = {
    "EfficientLVSM": "re10k_256",
    "LVSMDecoderOnly": "lvsm_decoder_only_256",
    "LVSMEncoderDecoder": "lvsm_encoder_decoder_256",
}


def _summary(model: ViewSynthesisModel) -> str:
    number = sum(leaf.size for leaf in jax.tree.leaves(model))
    sizes = ", ".join(
        f"{name} {value}" for name, value in model.config.structure.items() if name in SIZES
    )
    return f"{architecture_of(model.config)}, {number / 1e6:.2f} M parameters: {sizes}"


if __name__ == "__main__":
    main()
