"""The planner: turns a request for a plan into a checked plan, or says why it cannot make one."""
