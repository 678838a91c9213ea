"""Programs for developing the project; not part of the installed package."""
