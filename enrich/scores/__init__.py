"""How good answers are: metrics, their error bars, what they say in words, and figures."""
