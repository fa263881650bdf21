"""The real servers that the tests run against: started once a session, with something fresh in them for each test."""
