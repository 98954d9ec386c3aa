"""Below the loop: networks (run an engine) and field operations (everything between engine calls), and their pairing."""
