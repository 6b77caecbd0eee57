"""Parts of an export: the record of the run, the layouts, the model card and the check that the folder loads elsewhere."""
