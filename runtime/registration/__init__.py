"""Registration: two scans in, one result out."""
