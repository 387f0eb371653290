"""What isochunk asks of the machine it runs on: whole files, and cheap memory.

Nothing here knows of volumes or models.
"""
