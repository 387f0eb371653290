"""What users call: jobs, volumes, and what helps in a notebook."""
