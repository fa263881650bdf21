"""The module whose path errors have on the wire, in this release and 0.1.0: see contracts.types.keep_wire_path."""
