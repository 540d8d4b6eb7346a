"""Transforms, and the registrations that estimate them."""
