"""Registration of several scans: from files to folders one after another, or several pairs at once on a GPU."""
