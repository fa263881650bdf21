"""Benchmarks of a shop on one machine: its throughput, and the CPU time of each process. `make bench` runs them all.

A module of scenarios registers each with `@scenario("name")` (benchmarks/shop.py). __main__ imports the modules, in the
order of a run. musts.py has what must be reached.
"""
