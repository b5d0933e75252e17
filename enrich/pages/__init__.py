"""Pages for people: reports, score pages, model cards and the review queue."""
