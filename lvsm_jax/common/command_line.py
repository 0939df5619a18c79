"""Config files and their fields on the command line, with errors of one line."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ml_collections
from absl import flags
from ml_collections import config_flags


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the flags of a program for `app.run(main, flags_parser=parse_flags)`."""
    try:
        with _told_in_a_line(arguments[1:]):
            return flags.FLAGS(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def read_config_file(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """A config file (`FILE` or `FILE:ARGUMENT`) with fields set by `--config.SECTION.FIELD=VALUE`.

    The flags are read apart from the program's own, which may have a `--config` of their own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a field that there is not, or a value that it cannot have.
    """
    arguments = ["", f"--config={path}", *overrides]
    values = flags.FlagValues()
    with _told_in_a_line(arguments[1:]):
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
        values(arguments)
    return values.config


@contextmanager
def _told_in_a_line(arguments: Sequence[str]) -> Iterator[None]:
    for argument in arguments:
        file = argument.removeprefix("--config=").partition(":")[0]
        if argument.startswith("--config=") and not os.path.isfile(file):
            raise FileNotFoundError(f"there is no config file {file}")
    try:
        yield
    except flags.Error as error:
        # Of an error inside the config file this is the whole traceback; its end says enough.
        raise ValueError(str(error).splitlines()[-1].removeprefix("ValueError: ")) from error
    except (AttributeError, KeyError) as error:
        fields = " ".join(a for a in arguments if a.startswith(("--config.", "--noconfig.")))
        reason = str(error).strip("\"'").replace("\\n", " ").replace("\\", "")
        raise ValueError(f"the config lacks a field of {fields}: {reason}") from error
