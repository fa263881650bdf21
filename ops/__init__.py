"""What operators run on a live shop: an image carries all of it. It imports nothing of `dev`."""
