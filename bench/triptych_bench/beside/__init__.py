"""The same work on other products, which are installed on demand: `make bench ARGS="--beside restate,langgraph"`."""
