"""Networks: one file each, and what loads, probes and runs them."""
