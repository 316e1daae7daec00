from __future__ import annotations
import time, pytest
from tests.plugins.server import Queue
@pytest.mark.parametrize("i", range(8))
async def test_z(queue: Queue, i) -> None:
    await queue.create()
