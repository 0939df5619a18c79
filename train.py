"""Trains a view synthesis model; `lvsm train` is the same program.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart

`python train.py --help` says more. The program is lvsm_jax/programs/train.py, the loop
lvsm_jax/training/loop.py, the step lvsm_jax/training/train_state.py.
"""

# Worker processes import this file as well, and are to load neither JAX nor TensorFlow.
if __name__ == "__main__":
    from lvsm_jax.programs.train import main

    main()
