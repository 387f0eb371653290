"""Storage: volumes, objects and the URLs that lead to them."""
