"""Experiments; each file's `get_config` is data, and each field can be set on the command line."""
