"""The networks and front ends once more, in PyTorch, written from the papers alone.

Features are [b, f, t] here, PyTorch's order for convolutions over time.
"""
