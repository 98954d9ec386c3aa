"""Below the loop: networks (run an engine), field operations (everything between engine calls), and their pairing."""
