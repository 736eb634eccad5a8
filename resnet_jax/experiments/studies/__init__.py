"""The paper's claims as grids of runs, and the reports on them."""
