"""What tests of isochunk, and of models and tools built on it, can use."""
