"""Images: volumes and label maps, their intensities, masks, similarity, resampling, and pictures of them."""
