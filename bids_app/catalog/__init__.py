"""Catalog of models, adapters, atlases and templates: sources and local paths.

Names, checksums and files only: nothing here runs a model or processes an image.
"""
