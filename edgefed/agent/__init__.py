"""The device's side: a light supervisor that talks, and a worker subprocess that trains."""
