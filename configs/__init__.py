"""Experiments as Python files; each module's `get_config` is the record of a paper."""
