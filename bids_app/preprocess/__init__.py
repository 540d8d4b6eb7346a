"""From a raw run, or from the derivatives of another pipeline, to head motion, transforms, masks and confounds.

`io` reads images, `registration` aligns them, `sdc` corrects susceptibility distortion, `ingest` reads derivatives.
Nothing here knows a model or the order of steps.
"""
