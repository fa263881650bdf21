"""The programs behind `make` on a developer's machine: the shop, its servers, its checks. No image contains them."""
