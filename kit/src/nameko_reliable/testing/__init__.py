"""What tests of services need: a real PostgreSQL and RabbitMQ, a look into them, and addresses that fail at will."""
