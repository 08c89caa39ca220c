"""Where does a stack at initialisation collapse? The forward and backward recursion and its front."""
