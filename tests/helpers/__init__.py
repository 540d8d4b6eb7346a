"""Shared helpers of tests: data, models, paths, programs."""
