"""What the services share on the wire: errors, events and request schemas. Imports no other package of ours."""
