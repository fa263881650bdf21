"""The real servers of the tests. Each is started once a session. Each test gets new databases and queues."""
