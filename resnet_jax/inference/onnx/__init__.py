"""Writes a network as an ONNX graph.

`build.py` traces the network, and `rules.py` says which file writes which operation of
JAX. `graph.py` is the graph under construction, and `fusing.py` makes it shorter.
"""
