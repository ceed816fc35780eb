"""What `puna bench` measures: tests by name, the loop that runs them, cold starts, reports and traces."""
