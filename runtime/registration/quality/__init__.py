"""Quality control of a registration: figures that need no labels, and the verdict that follows from them."""
