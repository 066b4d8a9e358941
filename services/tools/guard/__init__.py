"""How a tool protects its upstream: limits of rate and concurrency, breaker, probes."""
