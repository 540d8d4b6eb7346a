"""What several test modules use: data, models, files beside the repository, programs."""
