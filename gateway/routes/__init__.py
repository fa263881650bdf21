"""The views, a module for each service that they ask."""
