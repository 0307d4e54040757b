"""Packages of an artifact for the build systems that apps use: one module per format.

``effc.export.formats.export`` is ``effc.export(...)`` and ``effc export``.
"""
