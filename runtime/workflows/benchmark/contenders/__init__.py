"""What is timed, and the processes it runs in."""
