"""Running a plan: the loop, and the places where blocks run."""
