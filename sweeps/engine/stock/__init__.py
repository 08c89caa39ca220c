"""Studies of the models of other libraries, trained by a plain loop and watched."""
