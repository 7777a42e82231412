"""One directory per question; a package, because opacus installs one of this name that would be found instead."""
