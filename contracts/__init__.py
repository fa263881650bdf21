"""What the services share: on the wire errors, events and request schemas; and what they don't start with.

Imports no other package of ours.
"""
