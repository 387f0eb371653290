"""Training, on the user's own volumes too.

What comes out is a checkpoint folder, and nothing else here is needed to run it. Read ``config``,
``sources``, ``data``, ``apply``, ``run``, ``loop``; then ``first_pass`` and ``training``, where a
training begins.
"""
