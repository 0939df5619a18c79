"""Weights of the published PyTorch programs, as models of this package, and back.

    lvsm convert checkpoint.pt exports/published                 # from PyTorch
    lvsm convert runs/re10k_256/export trained.safetensors       # to PyTorch

From PyTorch: a file of `torch.save` (weights under `model` or `state_dict`, or nothing else in it)
or a .safetensors file becomes an export, which `lvsm_jax.load`, `lvsm eval --checkpoint` and
`lvsm train --config.init_from` take. Of safetensors in several files, name their folder or index.
Architecture and sizes are inferred; every weight must be there, with its shape, and nothing else.
Averaged weights that the file has beside these are named, and --key takes them.
Back: an export becomes a .safetensors file with the published names. Both directions keep each
float32 bit for bit. Neither needs PyTorch. See docs/weights.md.
"""

from lvsm_jax.common.command_line import argument_parser, path, program

# Configs with the published sizes and protocol, by architecture.
_CONFIGS = {
    "EfficientLVSM": "re10k_256",
    "LVSMDecoderOnly": "lvsm_decoder_only_256",
    "LVSMEncoderDecoder": "lvsm_encoder_decoder_256",
}


@program
def main(arguments: list[str]) -> None:
    """Reads the command line, and converts."""
    parser = argument_parser("convert", __doc__)
    parser.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="weights, or an export")
    parser.add_argument("output", type=path, metavar="OUT", help="export, or .safetensors file")
    parser.add_argument("--key", metavar="NAME", help="where a file of torch.save has the weights")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at OUT")
    given = parser.parse_args(arguments)

    import jax  # only now, so that --help comes at once
    from etils import epath

    from lvsm_jax.common.errors import UserError
    from lvsm_jax.models.architectures import architecture_of
    from lvsm_jax.weights.convert import export_weights, import_weights
    from lvsm_jax.weights.exports import describe
    from lvsm_jax.weights.state_dict import holds_weights
    from lvsm_jax.weights.torch_names import SIZES

    is_weights = holds_weights(given.checkpoint) and not given.output.endswith(".safetensors")
    to_torch = epath.Path(given.checkpoint).is_dir() and not is_weights
    if to_torch:
        if given.key:
            raise UserError(
                f"--key={given.key}: {given.checkpoint} is an export, which has no keys"
            )
        model = export_weights(given.checkpoint, given.output, overwrite=given.overwrite)
    else:
        options = {"overwrite": given.overwrite, "key": given.key or ""}
        model = import_weights(given.checkpoint, given.output, **options)
    architecture = architecture_of(model.config)
    number = sum(leaf.size for leaf in jax.tree.leaves(model))
    structure = model.config.structure.items()
    told = ", ".join(f"{name} {value}" for name, value in structure if name in SIZES)
    print(f"{architecture}, {number / 1e6:.2f} M parameters: {told}\nwrote {given.output}")
    if not to_torch:
        source = describe(given.output)["source"]
        for other in source.get("other_keys", ()):
            print(
                f"The weights under {source['key']!r} were taken. The file has others of the same "
                f"names, perhaps averaged ones: --key={other}"
            )
        print(
            f"What is in it, and its scores:\n"
            f"  lvsm describe {given.output}\n"
            f"  lvsm eval --config=configs/{_CONFIGS[architecture]}.py --checkpoint={given.output}"
        )
