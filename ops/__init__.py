"""Commands for the operators of a live shop. Images contain all of them, so they import nothing of `dev`."""
