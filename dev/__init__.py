"""What `make` runs on a developer's machine: the shop, its private servers, its checks. No image carries it."""
