"""For one release: the names that a config.yaml of 0.1.0 has for parts of the kit, which is `nameko_reliable` now."""
