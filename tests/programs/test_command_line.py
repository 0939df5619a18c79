"""The command line: one list of commands, help that comes at once, errors in a line, `~`."""

import os
import pathlib
import subprocess
import sys

import pytest

import lvsm_jax
from lvsm_jax import __main__ as lvsm
from lvsm_jax.common import compilation
from lvsm_jax.common.command_line import (
    add_config_option,
    argument_parser,
    parse_with_config,
    program,
    read_config_file,
)
from lvsm_jax.common.errors import UserError

REPOSITORY = pathlib.Path(lvsm_jax.__file__).parents[1]
CONFIG = f"--config={REPOSITORY / 'configs' / 'quickstart.py'}"


def run(*arguments, cwd=REPOSITORY, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lvsm_jax", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
    )


def test_help_names_each_command(capsys):
    lvsm.main([])
    told = capsys.readouterr().out
    for command, (_, text) in lvsm.COMMANDS.items():
        assert f"    {command}" in told and text in told
    lvsm.main(["--version"])
    assert capsys.readouterr().out == f"lvsm_jax {lvsm_jax.__version__}\n"


def test_an_unknown_command_names_the_nearest():
    with pytest.raises(
        SystemExit, match=r"error: there is no command rendr; did you mean render\?"
    ):
        lvsm.main(["rendr"])


@pytest.mark.parametrize("command", lvsm.COMMANDS)
def test_help_teaches_without_jax(command):
    """What takes seconds to import comes after the arguments are parsed."""
    program = (
        "import sys; from lvsm_jax.__main__ import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit as end: assert not end.code, end\n"
        "heavy = {'jax', 'flax', 'orbax', 'tensorflow', 'tensorflow_datasets', 'grain'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: lvsm {command}" in done.stdout and f"    lvsm {command} " in done.stdout


def test_the_command_line_itself_imports_nothing_heavy():
    """Worker processes import `__main__` again."""
    program = "import sys, lvsm_jax.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert not {"jax", "numpy", "absl", "tensorflow"} & set(done.stdout.split())


def parse(*arguments):
    parser = argument_parser("test", "A program.")
    add_config_option(parser, required=False)
    parser.add_argument("--views", type=int)
    return parse_with_config(parser, list(arguments))


def test_config_fields_beside_arguments():
    given, config = parse("--views=3", CONFIG, "--config.run.seed=5", "--config.run.num_steps", "7")
    assert (given.views, config.run.seed, config.run.num_steps) == (3, 5, 7)
    assert parse("--views=3")[1] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG, "--viws=3"], r"no argument --viws=3; did you mean --views\?"),
        ([CONFIG, "more"], "unexpected argument more"),
        (["--config.run.seed=1"], "--config.run.seed=1 sets a field of a config file"),
        ([CONFIG, "--config.run.sed=1"], "lacks a field of --config.run.sed=1"),
        ([CONFIG, "--config.run.seed=x"], "seed"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        parse(*arguments)
    assert "\n" not in str(error.value)


def test_configs_are_found_here_and_among_the_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config_file("configs/quickstart.py").data.path == "data/synthetic"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").write_text(
        "from configs import base\n\ndef get_config():\n    config = base.get_config()\n"
        "    config.data.path = 'mine'\n    return config\n"
    )
    assert read_config_file("configs/quickstart.py").data.path == "mine"
    with pytest.raises(FileNotFoundError, match=r"there is no config file configs/none.py"):
        read_config_file("configs/none.py")


def test_home_directory_in_configs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text((REPOSITORY / "configs" / "quickstart.py").read_text())
    fields = ["--config.data.path=~/rooms", "--config.init_from=~/export"]
    config = read_config_file("~/mine.py", fields)
    assert config.data.path == f"{tmp_path}/rooms" and config.init_from == f"{tmp_path}/export"


def fail(error):
    @program
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize("kind", [UserError, FileNotFoundError, BrokenPipeError])
def test_what_a_user_did_ends_in_a_line(kind, capsys):
    with pytest.raises(SystemExit) as end:
        fail(kind("what is wrong"))([])
    assert end.value.code == "error: what is wrong"


@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--json", 141)])
def test_a_reader_that_closes_the_pipe_ends_it_in_silence(option, status):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lvsm_jax", "config", option]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (status, b"")


def test_bugs_keep_their_traceback():
    with pytest.raises(ValueError, match="a bug"):
        fail(ValueError("a bug"))([])
    with pytest.raises(SystemExit) as end:
        fail(KeyboardInterrupt())([])
    assert end.value.code == 130


COMPILE = """
import sys
from lvsm_jax.common.command_line import program
@program
def main(arguments):
    import jax
    import jax.numpy as jnp
    @jax.jit
    def slow(x):
        for _ in range(60):
            x = jnp.sin(x @ x) + jnp.sort(x, axis=0)
        return x
    print(float(slow(jnp.full((8, 8), 0.1)).sum()))
main([])
"""


@pytest.mark.parametrize("value", ["", "kept", "~/kept", "off"])
def test_compiled_programs_are_kept(tmp_path, value):
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        compilation.VARIABLE: str(tmp_path / value) if value == "kept" else value,
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    folder = tmp_path / ("kept" if "kept" in value else ".cache/lvsm_jax/xla")
    told = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        told.append((done.stdout, sorted(folder.rglob("*-cache"))))
    assert told[0] == told[1]
    assert bool(told[0][1]) == (value != "off")


def test_a_home_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv(compilation.VARIABLE, str(tmp_path / "file" / "cache"))
    compilation.keep_compiled_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    monkeypatch.setenv(compilation.VARIABLE, str(tmp_path / "cache"))
    compilation.keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"
