"""Steps of the catalog's tables; each names the one before it."""
