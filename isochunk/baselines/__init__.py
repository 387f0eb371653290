"""Published methods that a network has to beat; for comparison, not for production."""
