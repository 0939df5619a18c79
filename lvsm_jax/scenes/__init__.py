"""Photographs with cameras, their world frame, readers of their formats, camera paths."""
