"""Photos in, judged answers out: adapter, engines, evidence from token log-probabilities, judgement."""
