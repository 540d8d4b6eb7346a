"""Visual reports: HTML pages and SVG figures.

Reports are built from the derivatives only. No model is loaded and no result is computed.
"""
