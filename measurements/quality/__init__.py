"""Cases with a known outcome, for the verdict on registrations: made from any scans with labels, run and recorded."""
