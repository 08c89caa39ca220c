"""When does a training run collapse? The functional law that forecasts critical learning rates."""
