"""Measurements: every claim of speed or memory in this project is the output of one of these commands."""
