"""Targets to compile for, and devices to run on: the catalog, emulators, phones, boards."""
