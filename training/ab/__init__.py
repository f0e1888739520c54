"""A/B analysis: event rows of an experiment → lifts of ratio metrics with intervals that count users, not rows."""
