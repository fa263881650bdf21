"""A messaging kit for Nameko services that must not lose, double or reorder what matters.

events      durable handlers with retry and parking; broadcast handlers
hints       transient events, to the services that listen at that moment
rpc         the entrypoint and the client, with deadlines
outbox      events that leave exactly when their transaction has committed
inbox       what was handled already: events and calls
parking     the messages that no handler could take
polling     methods that work off a table
timers      methods that run every so often
database    transactions that know their deadline
sessions    what goes with a session's transaction
tables      the mixins for a service's models: outbox, inbox, answers
postgres    whose fault an error of PostgreSQL's is; addresses with several hosts
settings    what config.yaml says, checked before anything else is set up
messages    what crosses between services: frozen dataclasses, to JSON and back
errors      what the kit itself may answer a call with

telemetry   logs, a line of JSON each; metrics, with /livez and /readyz; gauges that ask the database or the broker;
            tracing, spans of all that a request caused
testing     pytest fixtures, private servers, and addresses that fail at will
amqp        the kit's own: the publishing and the consuming connection, the queues, the time that a call has left
"""
