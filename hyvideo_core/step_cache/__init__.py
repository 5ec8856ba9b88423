"""Skipping the blocks in steps that change little. Attached from outside; without one, nothing runs differently."""

from .base import CacheReport, StepCache, StepCacheRun
from .teacache import TeaCache

__all__ = ["CacheReport", "StepCache", "StepCacheRun", "TeaCache"]
