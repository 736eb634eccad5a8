"""Devices, processes, compilation, signals, atomic files and errors."""
