"""The quality of answers: metrics, their error bars, verdicts in words, and figures."""
