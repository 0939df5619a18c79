"""What became of everything that an import was given: printed, and in OUTPUT/refused.json."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

from etils import epath

from input_pipeline.storage import Shard
from lvsm_jax.common.files import write_text
from lvsm_jax.common.table import format_table
from lvsm_jax.common.text import printable

_SHOWN = 20  # refusals printed; all are in the file


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something about a chunk or clip that the user must know; `refused`: it was left out."""

    split: str
    chunk: str  # the file, or the folder of a scene, that was to be imported
    key: str | None  # None: the whole chunk
    reason: str
    refused: bool = True

    def __str__(self) -> str:
        clip = f" clip {self.key}" if self.key else ""
        return printable(f"{self.split}/{self.chunk}{clip}: {self.reason}")


def report(
    output: epath.Path,
    shards: Mapping[str, Sequence[Shard]],
    findings: Sequence[Finding],
    source: str,
) -> None:
    """Prints a table of the splits, with the number of their shards under the name `source`.

    Then the first findings; all of them are written to OUTPUT/refused.json.
    """
    refused = [finding for finding in findings if finding.refused]
    groups = {"refused": refused, "notes": [one for one in findings if not one.refused]}
    told = {name: [dataclasses.asdict(one) for one in group] for name, group in groups.items()}
    write_text(output / "refused.json", json.dumps(told, indent=1))
    rows = []
    for split, members in sorted(shards.items()):
        frames = [count for shard in members for count in shard.num_frames]
        left_out = sum(finding.split == split for finding in refused)
        rows.append((split, len(members), len(frames), sum(frames), left_out))
    print(format_table(("split", source, "clips", "frames", "refused"), rows))
    for title, group in zip(("Refused", "Noted"), groups.values(), strict=True):
        if group:
            print(f"{title}: {len(group)}, all of them in {output / 'refused.json'}")
            print("".join(f"  {finding}\n" for finding in group[:_SHOWN]), end="")
            if len(group) > _SHOWN:
                print(f"  … and {len(group) - _SHOWN} more")
