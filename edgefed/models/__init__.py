"""Base models on disk: finding them, telling them apart, reading shapes without loading weights."""
