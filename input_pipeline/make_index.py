r"""Makes an evaluation index of a dataset: which views of each clip are inputs, and which targets.

    lvsm make-index data/mine
    lvsm make-index data/re10k --by=span --inputs 1 2 4 8 --output data/re10k_views.json
    lvsm make-index data/gso --by=gso                              # renders of objects

A target is never an input. Of photographs without an order (a dataset with a table of cameras, as
those of lvsm import-scenes) the inputs are the N views that have most in common with a
neighbourhood in the scene, and targets are others of it; evaluate with --config.eval.num_inputs=N.
Of frames in order (--by=span) there are two contexts at least four fifths of a clip apart, between
which evaluation spreads any of the numbers of inputs given, and targets that are none of them.
Around objects (--by=gso) four inputs stand at elevation 20° and azimuths 45, 135, 225 and 315°, and
10 targets are drawn from the other views by the seed and the object's name. That is our own index:
which views the published scores on GSO are of was never said. The published index, where there is
one, is what scores are compared by.
"""

import json

from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import already_there, check_writable, expand, write_text

_INPUTS = {"overlap": (4,), "span": (1, 2, 4, 8), "gso": (4,)}
_TARGETS = {"overlap": 3, "gso": 10}


@program
def main(arguments: list[str]) -> None:
    """Writes an index."""
    parser = argument_parser("make-index", __doc__)
    add = parser.add_argument
    add("dataset", metavar="DATASET", type=path, help="directory of a dataset")
    text = "JSON file to write (DATASET/evaluation_index.json, where evaluation looks for it)"
    add("--output", metavar="FILE", type=path, help=text)
    add("--split", default="test", help="of the dataset (test)")
    text = (
        "choose views by the overlap of photographs, or the span of frames (as the dataset has), or"
        " around objects as others do for Google Scanned Objects"
    )
    add("--by", choices=("overlap", "span", "gso"), help=text)
    text = "inputs of an evaluation; by span several numbers (4; by span 1 2 4 8)"
    add("--inputs", nargs="+", type=int, metavar="N", help=text)
    add("--targets", type=int, metavar="N", help="of a clip, by overlap (3) or gso (10)")
    add("--seed", type=int, metavar="N", help="of the draw, by span or gso (0)")
    add("--overwrite", action="store_true", help="replace an index that is there")
    given = parser.parse_args(arguments)

    # Only now, so that --help comes at once.
    from input_pipeline.camera_table import table_path
    from input_pipeline.view_index import make_gso_index, make_index, make_overlap_index

    output = expand(given.output or expand(given.dataset) / "evaluation_index.json")
    if output.exists() and not given.overwrite:
        raise already_there(output)
    check_writable("--output", output.parent)
    by = given.by or ("overlap" if table_path(given.dataset, given.split).exists() else "span")
    counts = tuple(given.inputs or _INPUTS[by])
    _check(by, counts, given.targets, given.seed)
    targets, seed, reasons = given.targets or _TARGETS.get(by), given.seed or 0, {}
    if by == "span":
        entries = make_index(given.dataset, given.split, counts, seed)
    elif by == "gso":
        entries, reasons = make_gso_index(given.dataset, given.split, targets, seed)
    else:
        entries = make_overlap_index(given.dataset, given.split, counts[0], targets)
    write_text(output, json.dumps(entries, indent=1) + "\n")
    made = [entry for entry in entries.values() if entry]
    print(f"wrote {output}: {len(made)} clips")
    if few := [key for key, entry in entries.items() if not entry]:
        why = f"; {few[0]}: {reasons[few[0]]}" if reasons else ""
        what = "views" if by == "gso" else "photographs"
        print(f"{len(few)} have too few {what} and are null: {', '.join(few[:5])}{why}")
    if by == "gso":
        print(f"Its name is lvsm-gso, 4 inputs, {targets} targets, seed {seed}: no published index")
    if by != "span":
        print(f"Evaluate with --config.eval.num_inputs={counts[0]}")


def _check(by: str, counts: tuple[int, ...], targets: int | None, seed: int | None) -> None:
    if min(counts) < 1 or (targets is not None and targets < 1) or (seed or 0) < 0:
        raise UserError("--inputs and --targets must be at least 1, --seed at least 0")
    if by == "overlap" and (len(counts) > 1 or seed is not None):
        raise UserError("by overlap an index is for one number of --inputs, and nothing is drawn")
    if by == "gso" and counts != _INPUTS[by]:
        raise UserError(f"--inputs={counts[0]}, but by gso there are 4")
    if by == "span" and targets is not None:
        raise UserError("--targets is for photographs: by span there are 3")


if __name__ == "__main__":
    main()
