"""Randomness without hidden state: every draw comes from a generator named by (seed, purpose, step)."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed, the first bytes of SHA-256 over the three names (stable across machines and releases)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, step: int = 0, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator for one purpose at one step.

    The same (seed, purpose, step) gives the same draws whatever was drawn before, so a resumed run, both arms of a
    comparison and every rank of a distributed run see the same randomness.
    """
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, step))
