"""From a graph to a program that runs in one native call."""
