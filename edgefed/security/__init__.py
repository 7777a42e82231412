"""Who is who in a fleet: certificates, and what the broker lets each of them do."""
