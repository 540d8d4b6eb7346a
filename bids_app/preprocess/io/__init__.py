"""Reading images: headers, voxels, the times of volumes and slices."""
