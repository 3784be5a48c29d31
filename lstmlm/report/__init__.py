"""Runs seen afterwards: rows and curves, the page, the plots, and the report in W&B."""
