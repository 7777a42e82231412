"""What goes over the wire: bytes in, bytes out; no socket, no clock."""
