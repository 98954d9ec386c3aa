"""Files written whole, locked, hashed, listed, and read by a process of their own where their library may crash."""
