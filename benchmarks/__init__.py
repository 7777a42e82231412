"""Questions about edgefed answered by measurement. A package, because opacus installs another one of this name."""
