"""Files: written atomically, locked, hashed, and read in a separate process where their library may crash."""
