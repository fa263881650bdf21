"""What `make` runs: the shop on one machine, and the infrastructure of its tests."""
