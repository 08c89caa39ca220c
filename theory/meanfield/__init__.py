"""Where does a stack at initialisation collapse? The recursion forward and backward, and its front."""
