"""FLOPs, memory and communication of a model, counted without running it."""
