"""Evaluation: predictions to measures."""
