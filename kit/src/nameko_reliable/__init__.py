"""A messaging kit for Nameko services that must not lose, double or reorder what matters.

broker      a kept connection that publishes with confirms
consumers   the consuming connection of a service
rpc         the entrypoint and the client, with deadlines
deadlines   the time that a call has left, without any wall clock
events      durable handlers with retry and parking; broadcast handlers; hints
queues      what events lie in, classic or quorum
outbox      events that leave exactly when their transaction has committed
inbox       what was handled already: events and calls
parking     the messages that no handler could take
database    transactions that know their deadline
postgres    whose fault an error of PostgreSQL's is; addresses with several hosts
polling     methods that work off a table
timers      methods that run every so often
mailer      SMTP, with answers sorted by what they mean
openid      sign-in with an OpenID Connect provider
passwords   hashes that hold up neither the event loop nor other calls
settings    what config.yaml says, checked before anything else is set up
telemetry   logs, a line of JSON each
metrics     what a process tells about itself: /metrics, /livez and /readyz
gauges      what the database or the broker is asked for before that
tracing     spans of all that a request caused
"""
