"""The filters of METHOD section 1 against what they mean, written out naively, on arbitrary interactions."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_vlm2rec.prepare import interactions as filters
from recbole_vlm2rec.prepare.interactions import InteractionsBuilder

# Few users, items and moments: repeats and ties are the rule.
ROWS = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("uvwxyz"), st.integers(0, 6)), max_size=60)


def built(rows, rated=False):
    builder = InteractionsBuilder()
    for place, (user, item, time) in enumerate(rows):
        builder.add(user, item, time, float(place) if rated and place % 3 else None)
    return builder.build()


def rows_of(x):
    return [(x.user_tokens[u], x.item_tokens[i], t) for u, i, t in zip(x.users.tolist(), x.items.tolist(), x.times.tolist())]


def naive_last(rows, n):
    kept, seen = [], Counter()
    for row in reversed(rows):
        seen[row[0]] += 1
        if n == 0 or seen[row[0]] <= n:
            kept.append(row)
    return kept[::-1]


def naive_core(rows, k):
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        kept = [row for row in rows if users[row[0]] >= k and items[row[1]] >= k]
        if len(kept) == len(rows):
            return rows
        rows = kept


def naive_repeats(rows, which):
    if which == "keep":
        return rows
    first = list({row[:2]: row for row in (rows if which == "last" else rows[::-1])}.values())
    return [row for place, row in enumerate(rows) if any(row is one for one in first)]


@given(ROWS)
def test_rows_stay_as_they_were_added(rows):
    assert rows_of(built(rows)) == rows


@given(ROWS)
def test_time_orders_and_file_order_breaks_ties(rows):
    assert rows_of(filters.by_time(built(rows))) == sorted(rows, key=lambda row: row[2])


@given(ROWS, st.integers(0, 4))
def test_last_keeps_the_last_rows_of_each_user(rows, n):
    assert rows_of(filters.last(built(rows), n)) == naive_last(rows, n)


@given(ROWS, st.integers(1, 6))
def test_core_is_what_repeated_removal_leaves(rows, k):
    assert rows_of(filters.k_core(built(rows), k)) == naive_core(rows, k)


@given(ROWS, st.sampled_from(["keep", "first", "last"]))
def test_repeats(rows, which):
    rows = [tuple(row) for row in rows]
    assert rows_of(filters.drop_repeats(built(rows), which)) == naive_repeats(rows, which)


@given(ROWS, st.sets(st.sampled_from("uvwxyz")))
def test_keep_items(rows, good):
    x = built(rows)
    mask = np.array([token in good for token in x.item_tokens], bool)
    assert rows_of(filters.keep_items(x, mask)) == [row for row in rows if row[1] in good]


@given(ROWS, st.integers(0, 4), st.integers(1, 4), st.sets(st.sampled_from("uvwxyz")))
@settings(max_examples=200)
def test_the_whole_order(rows, n, k, good):
    x = built(rows)
    mask = np.array([token in good for token in x.item_tokens], bool)
    fast = filters.k_core(filters.last(filters.keep_items(filters.by_time(x), mask), n), k)
    slow = naive_core(naive_last([row for row in sorted(rows, key=lambda row: row[2]) if row[1] in good], n), k)
    assert rows_of(fast) == slow
    assert fast.counts() == {
        "users": len({row[0] for row in slow}),
        "items": len({row[1] for row in slow}),
        "interactions": len(slow),
    }


def test_ratings_go_with_their_rows():
    x = built([("a", "u", 3), ("b", "u", 1), ("a", "v", 2)], rated=True)
    np.testing.assert_array_equal(filters.by_time(x).ratings, [1.0, 2.0, np.nan])
    assert built([("a", "u", 3)]).ratings is None


@pytest.mark.parametrize("step", [lambda x: filters.last(x, 3), lambda x: filters.k_core(x, 2), filters.by_time])
def test_nothing_stays_nothing(step):
    assert len(step(built([]))) == 0
