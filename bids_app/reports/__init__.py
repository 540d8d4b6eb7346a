"""Figures and pages, made from the derivatives alone."""
