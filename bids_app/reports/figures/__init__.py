"""SVG figures: brain mosaics, charts of a run, and charts of a group, from arrays and images."""
