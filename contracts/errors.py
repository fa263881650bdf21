"""The path of errors on the wire, in this release and the one before; see contracts.types.keep_wire_path."""
