"""Devices, processes, compilation, signals, files written whole, errors."""
