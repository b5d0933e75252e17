"""Whole operations of commands and flows, composed of packages that do not depend on each other."""
