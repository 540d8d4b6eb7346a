"""Models, adapters, atlases and templates that can be named: where they come from, and where they lie on this machine.

Names, checksums and files only: nothing here runs a model or processes an image.
"""
