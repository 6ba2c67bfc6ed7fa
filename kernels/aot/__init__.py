"""Kernels compiled ahead of time: built without a GPU, launched without PyTorch and Triton.

`compile` makes machine code of a `Variant`, `table` watches over its registers, `build` writes
files and their `manifest`, `loader` opens them and launches through the `driver`.
"""
