"""`make chaos`: a stack under load and under fire, and a checker that looks at it from outside."""
