r"""Trains a view synthesis model, or goes on with a run that was stopped or killed.

    lvsm train --config=configs/quickstart.py --workdir=runs/quickstart
    lvsm train --config=configs/re10k_256.py --workdir=runs/re10k \
        --config.data.path=data/re10k --config.run.batch_size=64

Any field of the config can be set with --config.SECTION.FIELD=VALUE; `lvsm config` explains each.
Stopped at any moment, the same command goes on from the last checkpoint, to the same weights. On
several hosts each runs this command (docs/pods.md). The working directory holds:

    config.json   the resolved config         checkpoints/  of the whole state
    metrics.csv   one row each log_every      images/       input | target | render
    log.txt       all details of the run      tensorboard/  metrics, with the extra `tensorboard`
    export/       the weights at the end, for lvsm_jax.load and lvsm eval
"""

from lvsm_jax.common import command_line


@command_line.program
def main(arguments: list[str]) -> None:
    """Reads the command line, and trains."""
    parser = command_line.argument_parser("train", __doc__)
    command_line.add_config_option(parser)
    directory = "directory of the run; made, or gone on with"
    parser.add_argument("--workdir", type=command_line.path, required=True, help=directory)
    given, config = command_line.parse_with_config(parser, arguments)

    # Only now, so that --help comes at once.
    from absl import logging
    from etils import epath

    from lvsm_jax.common.files import clear_unfinished
    from lvsm_jax.parallel import processes
    from lvsm_jax.parallel.mesh import simulate_cpu_devices
    from lvsm_jax.programs.training_run import train
    from lvsm_jax.training.run_log import log_to
    from lvsm_jax.training.settings import Settings, check_start

    settings, workdir = Settings.of(config), epath.Path(given.workdir)
    count = processes.start(settings.processes)
    devices, sizes = settings.run.cpu_devices, settings.batch_sizes
    simulate_cpu_devices(devices, settings.mesh, *sizes, processes=count)
    processes.check_same_config(config.to_dict())
    with processes.error_of_any():
        check_start(settings, workdir)
        processes.check_writable("--workdir", workdir)
    processes.check_shared(workdir)
    log_to(workdir / "log.txt")
    if processes.is_main():
        for folder in (workdir, workdir / "images"):
            clear_unfinished(folder)
    try:
        train(config, workdir)
    except Exception:
        logging.info("the run ends with an error", exc_info=True)
        raise
