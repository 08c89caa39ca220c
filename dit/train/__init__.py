"""How is it trained? The trainer, its optimiser, checkpoints, telemetry and answers to alarms."""
