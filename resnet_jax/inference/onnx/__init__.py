"""Writes a network as an ONNX graph.

`build.py` makes the file. `trace.py` traces the network and looks up the rule of each
operation of JAX; the rules are in `elementwise.py`, `shapes.py`, `layers.py` and
`marked.py`. `graph.py` is the graph under construction, and `fusing.py` shortens it.
"""
