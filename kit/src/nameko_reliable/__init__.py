"""A messaging kit for Nameko services that must not lose, duplicate or reorder messages.

events      durable handlers with retry and parking; broadcast handlers
hints       transient events for the services that listen at that moment
rpc         the entrypoint and the client, with deadlines
outbox      events that are published if and only if their transaction has committed
inbox       the events and calls that a service has handled already
parking     the messages that no attempt could handle
polling     methods that work through the rows of a table
timers      methods that run at an interval
database    transactions with the deadline of their call
statements  statements in SQL that each do a whole step, prepared
pool        the connections that all extensions of a service share
sessions    functions that run after a session's commit
tables      the mixins for a service's models: outbox, inbox, answers
postgres    which kind an error of PostgreSQL is; addresses with several hosts
settings    the configuration, checked before anything else is set up
messages    events and other payloads: frozen dataclasses, to JSON and back
errors      the errors that the kit itself answers a call with

telemetry   logs as lines of JSON; metrics, with /livez and /readyz; gauges from the database and the broker; traces
testing     pytest fixtures, private servers, and proxies that cause outages
names       internal: look-ups of host names that do not block the event loop
amqp        internal: the publishing and the consuming connection, the queues, the time that a call has left
web         internal: the HTTP server of /metrics, and of WSGI apps
"""
