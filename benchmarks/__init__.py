"""Measurements; a package, because opacus installs one of that name, which would be taken for a directory's sake."""
