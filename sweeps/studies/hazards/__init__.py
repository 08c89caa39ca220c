"""When does a schedule collapse? The hazard of law O3: fitted to studies, forecast for them, and scored."""
