"""How is the network trained? The trainer, its optimiser, checkpoints, telemetry and reactions to alarms."""
