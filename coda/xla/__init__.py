"""Everything that imports torch_xla."""
