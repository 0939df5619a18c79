"""The command line: arguments, config files, and errors of one line."""

import argparse
import difflib
import importlib
import itertools
import logging as python_logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from lvsm_jax.common.compilation import keep_compiled_programs
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.text import printable

# Set to 1, programs also print the traceback of errors that they print in one line.
TRACEBACK_VARIABLE = "LVSM_TRACEBACK"

path = os.path.expanduser  # the type of arguments that are paths


def program(main: Callable[[list[str]], None]) -> Callable[[list[str] | None], None]:
    """Makes `main(arguments)` the main function of a program, whose compiled programs are kept.

    What a user did or a disk refuses ends it in one line with status 1, Ctrl-C with status 130, and
    a reader that closes the pipe, as `head` does, in silence with status 141. Any other exception
    is a bug and keeps its traceback.
    """

    def run(arguments: list[str] | None = None) -> None:
        keep_compiled_programs()
        # What fails in Orbax is raised as well, and told then.
        logging.get_absl_handler().addFilter(_is_not_of_orbax)
        try:
            main(sys.argv[1:] if arguments is None else arguments)
            print(end="", flush=True)
        except (UserError, OSError) as error:
            if isinstance(error, BrokenPipeError) and not _can_print("\n"):
                sys.exit(141)
            if os.environ.get(TRACEBACK_VARIABLE) == "1":
                traceback.print_exc()
            sys.exit(f"error: {printable(str(error))}")
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            _can_print("")

    run.__doc__ = main.__doc__
    return run


def _is_not_of_orbax(record: python_logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _can_print(text: str) -> bool:
    """Prints; where nothing can be printed, what follows is dropped, also by Python as it exits."""
    try:
        print(text, end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def argument_parser(command: str, doc: str) -> argparse.ArgumentParser:
    """The parser of `lvsm COMMAND`; its help is the module's docstring."""
    parser = argparse.ArgumentParser(
        prog=f"lvsm {command}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    text = "import a module of your own first, which registers a model; here, or an installed one"
    parser.add_argument("--import", action=_Import, metavar="MODULE", help=text)
    return parser


class _Import(argparse.Action):
    """Imports a module when its argument is met; leaves nothing among the arguments."""

    def __init__(self, **options):
        super().__init__(**options | {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS})

    def __call__(self, parser, namespace, values, option_string=None):
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(values)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{values}.".startswith(f"{error.name}."):
                raise  # what the module itself lacks
            raise UserError(f"--import={values}: there is no module {error.name}") from None
        except (ValueError, TypeError) as error:
            if isinstance(error, UserError) or not values.startswith("."):
                raise
            raise UserError(f"--import={values}: expected a module's full name") from None


def add_config_option(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds `--config=FILE`, beside which `parse_with_config` takes fields."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        required=required,
        help="config file, here or of those installed: configs/*.py; each of its fields can be set "
        "with --config.SECTION.FIELD=VALUE, see lvsm config",
    )


def parse_with_config(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, ml_collections.ConfigDict | None]:
    """The parser's arguments, and the config file of `--config` with the fields that are set.

    Raises UserError for an unknown argument, naming the nearest, and as `read_config_file`.
    """
    is_field = ("--config.", "--noconfig.")
    known = [flag for action in parser._actions for flag in action.option_strings]
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and not flag.startswith(is_field) and flag not in known:
            near = difflib.get_close_matches(flag, known, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(f"there is no argument {argument}{hint} See {parser.prog} --help")
    given, rest = parser.parse_known_args(arguments)
    for before, argument in itertools.pairwise(["", *rest]):
        is_value = before.startswith("--config.") and "=" not in before
        if not argument.startswith("-") and not is_value:
            raise UserError(
                f"unexpected argument {argument}; fields are --config.SECTION.FIELD=VALUE"
            )
    if given.config is None:
        if rest:
            raise UserError(f"{rest[0]} sets a field of a config file: give --config=FILE too")
        return given, None
    return given, read_config_file(given.config, rest)


def read_config_file(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """A config file (`FILE` or `FILE:ARGUMENT`) with fields set by `--config.SECTION.FIELD=VALUE`.

    `configs/NAME.py` is looked for in the working directory, then among the installed ones. Of text
    fields that are paths a leading `~` becomes the home directory. Raises FileNotFoundError for no
    such file, UserError for an unknown field or a value that it cannot have.
    """
    file, colon, argument = path.partition(":")
    file = os.path.expanduser(file)
    installed = os.path.join(os.path.dirname(__file__), "..", "..", file)
    if not os.path.isfile(file) and file.startswith("configs/") and os.path.isfile(installed):
        file = os.path.normpath(installed)
    if not os.path.isfile(file):
        raise FileNotFoundError(f"there is no config file {file}")
    arguments = ["", f"--config={file}{colon}{argument}", *overrides]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
        values(arguments)
    except flags.Error as error:
        # Of an error inside the config file this is the whole traceback; its end says enough.
        raise UserError(str(error).splitlines()[-1].removeprefix("ValueError: ")) from error
    except (AttributeError, KeyError) as error:
        reason = str(error).strip("\"'").replace("\\n", " ").replace("\\", "")
        message = f"the config lacks a field of {' '.join(overrides)}: {reason}"
        raise UserError(message) from error
    _expand_home(values.config)
    return values.config


def _expand_home(config: ml_collections.ConfigDict) -> None:
    for name, value in config.items():
        if hasattr(value, "items"):
            _expand_home(value)
        elif isinstance(value, str) and value.startswith("~"):
            config[name] = os.path.expanduser(value)
