"""Review of figures by people: a page with one figure at a time, from a local server or from the file system.

`figures` lists the figures, `page` makes the page, and `server` serves it and stores ratings
(`bids_app.outputs.ratings`). Nothing is computed from images, and no model is loaded.
"""
