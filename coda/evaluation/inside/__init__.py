"""What runs inside the sandbox: standard library only, and never an import from the rest of the project.

A fresh ``python -I -S`` imports this folder by its path as the package ``inside``, hence the relative imports. The
harness imports `wire` from here too: the one encoding that both sides speak.
"""
