"""Throughput and memory, measured rather than tested. Imports torch, vlm, objectives, measure and data.catalog; no recbole."""
