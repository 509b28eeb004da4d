"""Parts shared by both packages and specific to neither paper: cameras, datasets, images, field and trainer."""
