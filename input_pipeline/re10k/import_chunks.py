"""Turns each chunk file into a shard, and notes in OUTPUT/.import what became of its clips."""

import collections
import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence

from etils import epath

from input_pipeline import storage
from input_pipeline.import_report import Finding
from input_pipeline.re10k import pixelsplat
from input_pipeline.workers import run_jobs
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import read_json, write_text

NAME = "re10k"
_STATE = ".import"  # inside OUTPUT


class ImportFailure(UserError):
    """Why an import cannot go on."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One chunk file, which becomes one shard."""

    split: str
    source: epath.Path
    shard: epath.Path
    size: int  # bytes
    modified: int  # seconds since 1970

    @property
    def note(self) -> epath.Path:
        """File with the result of importing it."""
        return self.shard.parent / _STATE / f"{self.split}-{self.source.name}.json"

    def finding(self, key: str | None, reason: str, refused: bool = True) -> Finding:
        """A finding about this chunk, or about a clip in it."""
        return Finding(self.split, self.source.name, key, reason, refused)


@dataclasses.dataclass(frozen=True)
class Result:
    """What importing a chunk gave."""

    split: str
    num_bytes: int  # of the chunk, as is the next
    modified: int
    verified: bool
    shard: storage.Shard
    findings: tuple[Finding, ...]

    @classmethod
    def read(cls, path: epath.Path) -> "Result":
        """A result that `import_chunk` wrote."""
        try:
            values = read_json(path)
            shard = storage.Shard.from_json(values.pop("shard"))
            findings = tuple(Finding(**finding) for finding in values.pop("findings"))
            return cls(**values, shard=shard, findings=findings)
        except (ValueError, KeyError, TypeError) as error:
            raise ImportFailure(
                f"{path} is damaged ({error}); delete it to import its chunk again"
            ) from error


def import_chunk(chunk: Chunk, *, verify: bool, skip: frozenset[str] = frozenset()) -> Result:
    """Writes a chunk's sound clips to its shard, then the note; `skip` are keys seen before."""
    findings = []

    def clips() -> Iterator[storage.Clip]:
        seen = dict.fromkeys(skip, "an earlier chunk holds it already")
        for key, fields in pixelsplat.read_chunk(chunk.source, verify=verify):
            try:
                clip = pixelsplat.check_clip(fields, verify=verify)
                if clip.key in seen:
                    raise pixelsplat.ClipError(f"duplicate key: {seen[clip.key]}")
            except pixelsplat.ClipError as error:
                findings.append(chunk.finding(key, str(error)))
            else:
                seen[clip.key] = "this chunk holds it already"
                yield clip

    chunk.note.unlink(missing_ok=True)  # it never describes another shard than is there
    try:
        shard = storage.write_shard(chunk.shard, clips())
    except pixelsplat.ChunkError as error:
        findings.append(chunk.finding(None, str(error)))
        shard = storage.write_shard(chunk.shard, [])
    result = Result(chunk.split, chunk.size, chunk.modified, verify, shard, tuple(findings))
    write_text(chunk.note, json.dumps(dataclasses.asdict(result), indent=1))
    return result


def find_chunks(
    source: epath.Path, output: epath.Path, splits: Sequence[str] = ()
) -> dict[str, list[Chunk]]:
    """The chunks of each split, in order: of all splits in `source`, or of those named."""
    if not source.is_dir():
        raise ImportFailure(f"SOURCE {source} is not a folder")
    folders = [folder for folder in sorted(source.iterdir()) if folder.is_dir()]
    found = {folder.name: sorted(folder.glob("*.torch")) for folder in folders}
    found = {split: paths for split, paths in found.items() if paths}
    if not found:
        raise ImportFailure(
            f"SOURCE {source} has no folder of *.torch chunks; expected for example"
            f" {source / 'train' / '000000.torch'}"
        )
    if unknown := sorted(set(splits) - set(found)):
        raise ImportFailure(f"SOURCE {source} has no split {unknown}, only {sorted(found)}")

    chunks = {split: [] for split in splits or found}
    for split in chunks:
        for index, path in enumerate(found[split]):
            shard = storage.shard_path(output, NAME, split, index, len(found[split]))
            status = path.stat()
            chunks[split].append(Chunk(split, path, shard, status.length, status.mtime))
    return chunks


def finished(chunk: Chunk, *, verify: bool) -> Result | None:
    """What an earlier run made of the chunk, None if it is still to do; an error if it changed."""
    if not chunk.note.exists():
        return None
    result = Result.read(chunk.note)
    if result.shard.file != chunk.shard.name:
        raise ImportFailure(
            f"{chunk.source.parent} held another number of chunks when {result.shard.file} was made"
            f" from {chunk.source.name}; import it into an empty OUTPUT"
        )
    if (result.num_bytes, result.modified) != (chunk.size, chunk.modified):
        raise ImportFailure(
            f"{chunk.source} has changed since it was imported ({result.num_bytes} bytes then,"
            f" {chunk.size} now, or another date); delete {chunk.note} to import it again"
        )
    return result if chunk.shard.exists() and (result.verified or not verify) else None


def import_all(chunks: Sequence[Chunk], *, verify: bool, workers: int) -> dict[Chunk, Result]:
    """Imports what is not finished, in worker processes; shows progress on stderr."""
    results = {chunk: finished(chunk, verify=verify) for chunk in chunks}
    if None in results.values():  # not complete until it is again
        (chunks[0].shard.parent / "dataset_info.json").unlink(missing_ok=True)
    write = functools.partial(import_chunk, verify=verify)
    return run_jobs(results, write, workers=workers, label="importing", unit="B")


def other_splits(output: epath.Path, splits: Sequence[str]) -> dict[str, list[Result]]:
    """Splits that earlier runs imported completely, without those named."""
    results = [Result.read(path) for path in sorted((output / _STATE).glob("*.json"))]
    found = collections.defaultdict(list)
    for result in sorted(results, key=lambda result: result.shard.file):
        if result.split not in splits and (output / result.shard.file).exists():
            found[result.split].append(result)
    return {
        split: results
        for split, results in found.items()
        if results[0].shard.file.endswith(f"-of-{len(results):05d}")
    }
