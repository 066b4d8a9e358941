"""The critic: compares what came out with what was expected, and gives a verdict."""
