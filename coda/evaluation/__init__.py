"""Evaluation that reproduces: tasks, the sandbox that runs what models write, judges, pass@k, likelihood."""
