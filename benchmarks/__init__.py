"""What one machine's shop can do, and what each process pays for it. `make bench` runs them all.

A module of scenarios registers each with `@scenario("name")` (benchmarks/shop.py) and is imported in __main__.
"""
