"""Files that are installed with the package: the demonstration model, golden values, the bibliography. No code."""
