"""Training: degradations, crops, configs and the loop."""
