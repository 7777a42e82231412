"""Control messages, by who says them: retained states, from a device (up), to a device (down)."""
