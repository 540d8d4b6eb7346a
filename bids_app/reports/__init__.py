"""Figures and pages, made from derivatives and arrays.

No model is loaded, and no result is computed that the derivatives do not hold.
"""
