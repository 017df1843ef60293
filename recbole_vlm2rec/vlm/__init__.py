"""The encoder room: a vision-language model that turns titles and pictures into vectors.

Imports torch, transformers and peft only, so that it serves and benchmarks without RecBole.
"""
