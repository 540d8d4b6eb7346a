"""Transforms, the registrations that estimate them, and the gates that they have to pass.

Each registration is of two images; nothing here knows the order of steps.
"""
