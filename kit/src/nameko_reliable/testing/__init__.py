"""For tests of services: a real PostgreSQL and RabbitMQ, ways to inspect them, and proxies that cause outages."""
