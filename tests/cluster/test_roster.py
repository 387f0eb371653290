"""What the scheduler knows of its workers, asked while the client asks for something else."""

from __future__ import annotations

import dask
from distributed import Client

from isochunk.cluster.roster import known_workers


def test_an_answer_is_not_lost_to_what_the_client_asks_by_itself(client: Client) -> None:
    address = client.scheduler.address
    with (
        dask.config.set({"distributed.client.scheduler-info-interval": "1ms"}),
        Client(address, set_as_default=False) as restless,
    ):
        assert all(len(known_workers(restless)) == 2 for _ in range(300))
