"""Measurements that users run on their machines: each prints tables, and writes JSON and plots."""
