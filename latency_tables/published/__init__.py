"""Tables that the papers' authors published: latencies and importances by position in one network."""
