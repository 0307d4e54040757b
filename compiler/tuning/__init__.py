"""compiler/tuning."""
