"""Transforms, registrations that estimate them, and quality checks of registrations."""
