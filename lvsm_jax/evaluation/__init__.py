"""Scores on held-out views, and the page that shows them."""
