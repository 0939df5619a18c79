"""FLOPs, memory and communication, counted before anything runs."""
