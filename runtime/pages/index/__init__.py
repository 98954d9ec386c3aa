"""The page of many registrations: worst first, with pictures to flicker, distributions, and ratings to download."""
