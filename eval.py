"""Scores a model on held-out views; `lvsm eval` is the same program.

    python eval.py --config=configs/quickstart.py --checkpoint=runs/quickstart/export

`python eval.py --help` says more. The program is lvsm_jax/programs/eval.py, the scoring
lvsm_jax/evaluation/scoring.py, the metrics lvsm_jax/evaluation/metrics.py.
"""

# Worker processes import this file as well, and are to load neither JAX nor TensorFlow.
if __name__ == "__main__":
    from lvsm_jax.programs.eval import main

    main()
