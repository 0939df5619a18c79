"""Rendering view by view: the KV cache, the latents, the session."""
