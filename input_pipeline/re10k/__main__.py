"""Imports RealEstate10K from pixelSplat chunks into a dataset directory.

    lvsm import-re10k ~/re10k_chunks data/re10k

SOURCE holds a folder for each split (train, test, …) of NNNNNN.torch chunks and an index.json;
every split found is imported. OUTPUT becomes a dataset directory that training, evaluation and
TFDS read frame by frame. JPEGs are copied bit for bit and PyTorch is not needed.

Each clip is checked (fields, counts, cameras, every JPEG decoded) and taken or refused as a whole;
what was refused, and why, is printed and written to OUTPUT/refused.json.

Stop it at any time, however rudely, and give the same command again: finished chunks are kept.
Given once more after the end, it does nothing and says so.
"""

import collections
import os
from collections.abc import Mapping, Sequence

from etils import epath

from input_pipeline import storage
from input_pipeline.import_report import Finding, report
from input_pipeline.re10k import import_chunks
from input_pipeline.re10k.import_chunks import Chunk, ImportFailure, Result
from lvsm_jax.common.command_line import argument_parser, path, program
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import clear_unfinished, expand, read_json, write_text


def drop_duplicates(results: Mapping[Chunk, Result], *, verify: bool) -> list[Result]:
    """The results of a split's chunks in order, after refusing keys that an earlier chunk holds."""
    seen, kept = set(), []
    for chunk, result in results.items():
        if again := seen.intersection(result.shard.keys):
            result = import_chunks.import_chunk(chunk, verify=verify, skip=frozenset(again))
        seen.update(result.shard.keys)
        kept.append(result)
    return kept


def compare_with_index(
    folder: epath.Path, chunks: Sequence[Chunk], results: Sequence[Result]
) -> list[Finding]:
    """Findings on a split's index.json: clips it lists that are not there, and the reverse."""
    split, path = folder.name, folder / "index.json"
    if not path.exists():
        return [Finding(split, path.name, None, "is missing: clips not compared with it", False)]
    try:
        index = read_json(path)
    except UserError as error:
        raise ImportFailure(f"{path} is not a JSON object: {error}") from error
    if not all(isinstance(file, str) for file in index.values()):
        raise ImportFailure(f"{path} must map each key to the name of a chunk file")
    there = {key: chunk for chunk, r in zip(chunks, results, strict=True) for key in r.shard.keys}
    known = {(f.chunk, f.key) for result in results for f in result.findings}
    listed = collections.defaultdict(list)
    for key, file in index.items():
        listed[file].append(key)
    chunk_of = {chunk.source.name: chunk for chunk in chunks}
    findings = []
    for file, keys in listed.items():
        if file not in chunk_of:
            reason = f"no such file; index.json lists {len(keys)} clips in it, first {keys[0]}"
            findings.append(Finding(split, file, None, reason))
        elif (file, None) not in known:  # a chunk that could be read
            findings += [
                chunk_of[file].finding(key, "index.json lists it here, but it is not in the chunk")
                for key in keys
                if key not in there and (file, key) not in known
            ]
    for key, chunk in there.items():
        if index.get(key) != chunk.source.name:
            where = f"lists it in {index[key]}" if key in index else "does not list it"
            findings.append(chunk.finding(key, f"imported, though index.json {where}", False))
    return findings


def run(
    source: epath.PathLike,
    output: epath.PathLike,
    *,
    splits: Sequence[str] = (),
    workers: int = 1,
    verify: bool = True,
    strict: bool = False,
    evaluation_index: epath.PathLike | None = None,
) -> list[Finding]:
    """Imports as the command line does, prints the report and returns the findings.

    ImportFailure says why it could not be done; with `strict`, also that a clip was refused.
    """
    source, output = expand(source), expand(output)
    chunks = import_chunks.find_chunks(source, output, splits)
    for folder in (output, output / ".import"):
        folder.mkdir(parents=True, exist_ok=True)
        clear_unfinished(folder)
    was_complete = (output / "dataset_info.json").exists()
    every_chunk = [chunk for members in chunks.values() for chunk in members]
    imported = import_chunks.import_all(every_chunk, verify=verify, workers=workers)
    results = import_chunks.other_splits(output, list(chunks))
    findings = [f for members in results.values() for result in members for f in result.findings]
    for split, members in chunks.items():
        kept = drop_duplicates({chunk: imported[chunk] for chunk in members}, verify=verify)
        findings += [finding for result in kept for finding in result.findings]
        findings += compare_with_index(source / split, members, kept)
        results[split] = kept
    shards = {split: [r.shard for r in members] for split, members in sorted(results.items())}
    report(output, shards, findings, "chunks")
    refused = sum(finding.refused for finding in findings)
    if strict and refused:
        raise ImportFailure(f"--strict: {refused} refused, see {output / 'refused.json'}")
    index = expand(evaluation_index or source / "evaluation_index.json")
    if index.exists():
        write_text(output / "evaluation_index.json", index.read_text())
    elif evaluation_index:
        raise ImportFailure(f"there is no evaluation index {index}")
    if was_complete and (output / "dataset_info.json").exists():
        print(f"{output} was complete already: nothing to do.")
    else:
        storage.finalize(output, import_chunks.NAME, shards)
        print(f"{output} is complete.")
    return findings


@program
def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argument_parser("import-re10k", __doc__)
    add = parser.add_argument
    add("source", metavar="SOURCE", type=path, help="folder of the splits' folders of chunks")
    add("output", metavar="OUTPUT", type=path, help="dataset directory to make; may be gs://")
    add("--splits", nargs="+", default=(), metavar="SPLIT", help="only these (default: all found)")
    text = "processes, each with one chunk at a time (default: %(default)s)"
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help=text)
    text = "where anything is refused, exit with 1 and do not declare the dataset complete"
    add("--strict", action="store_true", help=text)
    text = (
        "do not decode every JPEG nor compare checksums; headers, ends and cameras still are"
        " checked (faster, but silent damage passes)"
    )
    add("--no-verify", dest="verify", action="store_false", help=text)
    text = (
        "pixelSplat's index of context and target frames, to be copied into OUTPUT"
        " (default: SOURCE/evaluation_index.json where there is one)"
    )
    add("--evaluation-index", metavar="FILE", type=path, help=text)
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers must be at least 1, not {given.workers}")
    run(**vars(given))
    print(
        "\nTrain on it (the other configs are in configs/):\n"
        "  lvsm train --config=configs/re10k_256.py --workdir=runs/re10k_256"
        f" --config.data.path={given.output}"
    )


if __name__ == "__main__":
    main()
