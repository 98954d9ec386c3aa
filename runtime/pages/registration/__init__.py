"""The page of one registration: slices to flicker, maps, the loop's trace, a viewer, and every figure of its report."""
