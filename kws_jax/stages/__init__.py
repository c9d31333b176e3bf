"""The kinds of stages, and which one of them runs."""
