"""The earlier home of the draft trees, which configurations of older runs name."""

from harness.engine.draft_trees import Dynamic as Dynamic
from harness.engine.draft_trees import Static as Static
