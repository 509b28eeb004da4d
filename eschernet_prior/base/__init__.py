"""What both packages need and neither paper owns: cameras, datasets, images, the field and the trainer."""
