"""The demo: real tissue made coarse, restored on a local cluster, and held beside the truth."""
