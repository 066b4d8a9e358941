"""The frame of a service process: settings, signals, logs, traces, health, the watchdog and waits for lost servers."""
