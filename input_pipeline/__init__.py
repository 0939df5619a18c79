"""Data for `lvsm_jax`: importing, storing, sampling and loading scenes with known cameras.

`storage` is the format on disk, `re10k` and `synthetic` write it, `loading` reads it for training
and evaluation. Importing this package imports none of them.
"""
