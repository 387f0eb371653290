"""Pages that show what a job did, kept beside its target."""
