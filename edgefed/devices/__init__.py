"""What a device is, measured on the device itself."""
