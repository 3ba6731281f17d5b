"""Secure aggregation user by user: exact sums for every pattern of dropouts, nothing below the threshold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dpsw_ray.federated.secagg import Aborted, Client, Server, combine, split
from dpsw_ray.federated.shares import centred, share_variance, skellam
from dpsw_ray.privacy.noise import NoiseKey

BITS, PRECISION, CELLS = 40, 16, 50


def group(users: int, threshold: int) -> tuple[dict[int, Client], Server]:
    clients = {user: Client(user, BITS, threshold, b"round 1") for user in range(users)}
    for dealer, client in clients.items():
        for holder, shares in client.deal(list(clients)).items():
            clients[holder].keep(dealer, shares)
    publics = {user: client.public for user, client in clients.items()}
    return clients, Server(BITS, threshold, b"round 1", publics)


def values(users: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(users)
    share = share_variance(1e9, 3, 0)
    return {
        user: rng.integers(0, 1 << PRECISION, CELLS) + skellam(NoiseKey.from_seed(user), share, CELLS)
        for user in range(users)
    }


@pytest.mark.parametrize(
    "gone", [list(gone) for n in range(3) for gone in itertools.combinations(range(5), n)]
)
def test_the_total_is_the_plain_sum_whoever_drops_out_before_sending(gone: list[int]) -> None:
    clients, server = group(5, 3)
    mine = values(5)
    publics = {user: client.public for user, client in clients.items()}
    for user, client in clients.items():
        if user not in gone:
            server.receive(user, client.message(mine[user], publics))
    here = {user: client for user, client in clients.items() if user not in gone}
    total = centred(server.total(here), BITS, 5, PRECISION)
    assert np.array_equal(total, sum(mine[user] for user in here))


@pytest.mark.parametrize("present", list(itertools.combinations(range(4), 3)))
def test_those_who_leave_after_sending_are_in_the_sum(present: tuple[int, ...]) -> None:
    clients, server = group(5, 3)
    mine = values(5)
    publics = {user: client.public for user, client in clients.items()}
    for user in range(4):
        server.receive(user, clients[user].message(mine[user], publics))
    total = server.total({user: clients[user] for user in present})
    assert np.array_equal(centred(total, BITS, 5, PRECISION), sum(mine[user] for user in range(4)))


def test_below_the_threshold_nothing_is_unmasked() -> None:
    clients, server = group(5, 4)
    publics = {user: client.public for user, client in clients.items()}
    for user in range(3):
        server.receive(user, clients[user].message(values(5)[user], publics))
    with pytest.raises(Aborted, match="fewer than the threshold of 4"):
        server.total({user: clients[user] for user in range(3)})
    with pytest.raises(Aborted):  # a server that pretends otherwise gets no share
        clients[0].unmask([0, 1, 2], [3, 4])
    assert not any(client._answered for client in clients.values())


def test_nobody_gives_both_secrets_of_a_user() -> None:
    clients, _ = group(4, 2)
    with pytest.raises(RuntimeError):
        clients[0].unmask([1, 2, 3], [3])
    clients[0].unmask([1, 2], [3])
    with pytest.raises(RuntimeError):  # not even one after the other
        clients[0].unmask([1, 2, 3], [])


def test_a_single_message_and_all_but_one_look_like_noise() -> None:
    clients, _ = group(4, 2)
    publics = {user: client.public for user, client in clients.items()}
    zero = np.zeros(20_000, np.int64)
    messages = [client.message(zero, publics) for client in clients.values()]
    for part in (messages[0], messages[0] + messages[1] + messages[2]):
        uniform = (part & np.uint64((1 << BITS) - 1)).astype(float) / 2**BITS
        assert abs(uniform.mean() - 0.5) < 0.01 and abs(uniform.std() - 12**-0.5) < 0.01


def test_shares_below_the_threshold_say_nothing_and_enough_of_them_everything() -> None:
    secret = bytes(range(32))
    shares = split(secret, 3, range(6))
    for chosen in itertools.combinations(range(6), 3):
        assert combine([shares[holder] for holder in chosen]) == secret
    assert combine([shares[0], shares[1]]) != secret
