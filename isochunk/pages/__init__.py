"""Pages that show what a job did: to be looked at by people, kept beside the target."""
