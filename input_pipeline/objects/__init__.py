"""Renders of objects, with cameras and transparency, into our datasets."""
