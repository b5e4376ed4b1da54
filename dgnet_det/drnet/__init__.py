"""Routing between branches, after Dynamic Routing Networks (arXiv 1905.04849): docs/drnet.md says
what of it is ours."""
