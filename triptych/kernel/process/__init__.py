"""The frame of a service process: settings, signals, logs, health and the watchdog."""
