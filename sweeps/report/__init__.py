"""What does a run, a sweep or a log look like? One page: what is said, how it is drawn, how it is written."""
