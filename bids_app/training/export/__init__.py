"""``neurostorm-train export``: the embeddings of a cohort, with labels, splits and provenance, for other libraries."""
