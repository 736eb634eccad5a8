"""Many runs: studies of the paper's claims, sweeps, and the jobs they start."""
