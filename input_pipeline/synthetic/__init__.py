"""Synthetic rooms, ray-cast on the CPU."""
