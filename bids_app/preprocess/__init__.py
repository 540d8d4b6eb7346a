"""From a raw run to motion, transforms, masks and confounds, and from there onto a grid; nothing here knows a model."""
