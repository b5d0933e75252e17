"""The compositions: what a command or a flow does, from stages that know nothing of each other."""
