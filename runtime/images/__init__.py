"""Images: volumes and label maps, their intensities, masks, similarity measures, resampling, and previews."""
